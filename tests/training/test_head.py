"""The refitted head against scikit-learn's own logistic regression on the same features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from featprop_sklearn.networks import Chain, Stage, affine_sites, build_chain
from featprop_sklearn.output_targets import Head, OutputTargets
from featprop_sklearn.training.head import is_head, refit_head

IRIS, KINDS = load_iris(return_X_y=True)
CONSTANT = np.hstack([IRIS, np.full((150, 1), 7.3), np.zeros((150, 1))])


def refit(features, y, width, *, task="multiclass", C=0.1, weights=None, bias=True, start=None):
    """Refit a fresh layer; return it and its logits on the features."""
    layer = nn.Linear(features.shape[1], width, bias=bias).double()
    if start is not None:
        layer.load_state_dict(start.state_dict())
    x = torch.tensor(features, dtype=torch.float64)
    w = torch.ones(len(x)) if weights is None else torch.tensor(weights, dtype=torch.float32)
    refit_head(layer, x, torch.tensor(y), w, OutputTargets(task), C)
    return layer, layer(x).detach().numpy()


def reference(C, **options):
    model = LogisticRegression(C=C, tol=1e-10, max_iter=10_000, **options)
    return make_pipeline(StandardScaler(), model)


def softmax(logits):
    return torch.softmax(torch.as_tensor(logits), dim=1).numpy()


@pytest.mark.parametrize("features", [IRIS, CONSTANT, IRIS * 1e-6, IRIS + 1e4])
@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_several_classes(features, C):
    _, logits = refit(features, KINDS, 3, C=C)
    theirs = reference(C).fit(features, KINDS).predict_proba(features)
    np.testing.assert_allclose(softmax(logits), theirs, atol=1e-4)


def test_many_unknowns_go_to_another_solver_with_the_same_answer():
    X, y = load_digits(return_X_y=True)
    X, y = X[:500], y[:500]
    _, logits = refit(X, y, 10)
    theirs = reference(0.1).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(softmax(logits), theirs, atol=2e-3)


def test_two_logits():
    _, logits = refit(IRIS, KINDS // 2, 2)
    theirs = reference(0.1).fit(IRIS, KINDS // 2).predict_proba(IRIS)
    np.testing.assert_allclose(softmax(logits), theirs, atol=1e-4)


@pytest.mark.parametrize("shape", [(150,), (150, 1)])
def test_one_logit(shape):
    y = (KINDS == 1).astype(int)
    _, logits = refit(IRIS, y.reshape(shape), 1, task="binary")
    theirs = reference(0.1).fit(IRIS, y).decision_function(IRIS)
    np.testing.assert_allclose(logits[:, 0], theirs, atol=1e-3)


def test_several_labels_are_one_problem_each():
    y = np.column_stack([KINDS == 1, KINDS > 0, IRIS[:, 0] > 5.8]).astype(int)
    _, logits = refit(IRIS, y, 3, task="multilabel")
    rows = StandardScaler().fit_transform(IRIS)
    theirs = OneVsRestClassifier(reference(0.1)[-1]).fit(rows, y).decision_function(rows)
    np.testing.assert_allclose(logits, theirs, atol=1e-3)


def test_a_label_with_one_answer_keeps_its_weights():
    y = np.column_stack([KINDS == 1, np.ones(150)]).astype(int)
    start = nn.Linear(4, 2).double()
    layer, _ = refit(IRIS, y, 2, task="multilabel", start=start)
    assert torch.equal(layer.weight[1], start.weight[1])
    assert torch.equal(layer.bias[1], start.bias[1])
    assert not torch.equal(layer.weight[0], start.weight[0])


@pytest.mark.parametrize(("task", "width"), [("multiclass", 3), ("binary", 1)])
def test_one_class_alone_teaches_nothing(task, width):
    start = nn.Linear(4, width).double()
    layer, _ = refit(IRIS, np.zeros(150, dtype=int), width, task=task, start=start)
    assert torch.equal(layer.weight, start.weight)
    assert torch.equal(layer.bias, start.bias)


@pytest.mark.parametrize("present", [[1, 3], [0, 2, 3]])
def test_absent_classes_keep_their_weights_and_outvote_no_label(present):
    y = np.array(present)[KINDS % len(present)]
    start = nn.Linear(4, 5).double()
    absent = np.setdiff1d(np.arange(5), present)
    start.bias.data[absent[0]] += 1e3
    start.bias.data[absent[-1]] -= 1e3
    layer, logits = refit(IRIS, y, 5, start=start)
    theirs = reference(0.1).fit(IRIS, y).predict_proba(IRIS)
    np.testing.assert_allclose(softmax(logits[:, present]), theirs, atol=1e-4)
    assert torch.equal(layer.weight[absent], start.weight[absent])
    lead = logits[:, absent] - logits[np.arange(150), y][:, None]
    assert lead.max() <= -1 + 1e-9
    assert torch.equal(layer.bias[absent[-1]], start.bias[absent[-1]])  # outvoted none anyway

    again, _ = refit(IRIS, y, 5, start=layer)
    torch.testing.assert_close(again.bias, layer.bias)


def test_a_weight_is_a_repetition():
    weights = np.random.default_rng(0).integers(1, 4, 150)
    _, weighted = refit(IRIS, KINDS, 3, weights=weights)
    layer, _ = refit(np.repeat(IRIS, weights, axis=0), np.repeat(KINDS, weights), 3)
    repeated = layer(torch.tensor(IRIS)).detach().numpy()
    np.testing.assert_allclose(softmax(weighted), softmax(repeated), atol=1e-8)
    _, plain = refit(IRIS, KINDS, 3)
    assert np.abs(softmax(weighted) - softmax(plain)).max() > 1e-3


@pytest.mark.parametrize(("width", "task"), [(3, "multiclass"), (1, "binary")])
def test_a_layer_without_bias_is_fitted_as_one(width, task):
    y = KINDS if width == 3 else (KINDS == 1).astype(int)
    _, logits = refit(IRIS, y, width, task=task, bias=False)
    sizes = np.sqrt(np.square(IRIS).mean(axis=0))
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000, fit_intercept=False)
    theirs = model.fit(IRIS / sizes, y)
    ours = softmax(np.hstack([np.zeros_like(logits), logits]) if width == 1 else logits)
    np.testing.assert_allclose(ours, theirs.predict_proba(IRIS / sizes), atol=1e-4)


def test_rounding_of_float32_is_not_taken_for_information():
    noise = np.random.default_rng(0).choice([-4, 4], 150) * np.finfo(np.float32).eps
    features = np.column_stack([IRIS, 5 * (1 + noise)]).astype(np.float32)
    layer = nn.Linear(5, 3)
    targets = OutputTargets("multiclass")
    refit_head(layer, torch.tensor(features), torch.tensor(KINDS), torch.ones(150), targets, 0.1)
    assert layer.weight[:, 4].abs().max() < 1e-3


@pytest.mark.parametrize("C", [0.1, 1e4])
@pytest.mark.parametrize("n_features", [4, 200])
def test_no_warning_on_separable_or_degenerate_features(C, n_features):
    """Warnings are errors here."""
    draw = np.random.default_rng(0)
    y = np.arange(60) % 3
    features = 5 * np.eye(3)[y] @ draw.normal(size=(3, n_features))  # of rank 3
    _, logits = refit(features, y, 3, C=C)
    np.testing.assert_array_equal(logits.argmax(axis=1), y)


def test_features_that_overflowed_leave_the_layer_alone():
    start = nn.Linear(4, 3).double()
    features = IRIS.copy()
    features[3, 1] = np.inf
    layer, _ = refit(features, KINDS, 3, start=start)
    assert torch.equal(layer.weight, start.weight)


# which layer is the head


class Squeezed(nn.Module):
    def forward(self, x):
        return x[:, 0]


SOFT = Head("probabilities")
SIGMOID = Head("probabilities", sigmoid=True)


@pytest.mark.parametrize(
    ("tail", "width", "targets", "expected"),
    [
        ((), 3, OutputTargets("multiclass"), True),
        ((nn.Dropout(), nn.Flatten()), 3, OutputTargets("multiclass"), True),
        ((nn.Softmax(dim=1),), 3, OutputTargets("multiclass", head=SOFT), True),
        ((nn.LogSoftmax(1),), 3, OutputTargets("multiclass", head=Head("log_probabilities")), True),
        ((nn.Sigmoid(),), 1, OutputTargets("binary", head=SIGMOID), True),
        ((nn.Sigmoid(),), 3, OutputTargets("multilabel", head=SIGMOID), True),
        ((Squeezed(),), 1, OutputTargets("binary"), True),
        ((), 3, OutputTargets("regression"), False),
        ((nn.ReLU(),), 3, OutputTargets("multiclass"), False),
        ((nn.Hardtanh(),), 3, OutputTargets("multiclass"), False),
        ((nn.BatchNorm1d(3, affine=False, eps=1.0),), 3, OutputTargets("multiclass"), False),
        ((nn.Unflatten(1, (3, 2)), Squeezed()), 6, OutputTargets("multiclass"), False),
        ((nn.Softmax(dim=1),), 2, OutputTargets("multilabel"), False),
    ],
)
@pytest.mark.parametrize("scale", [1, 300])
def test_the_head_is_a_linear_layer_whose_outputs_are_the_logits(
    tail, width, targets, expected, scale
):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, width), *tail).eval()
    net[2].weight.data *= scale  # probabilities saturate
    net[2].bias.data *= scale
    x = torch.randn(8, 4)
    chain = build_chain(net, x)
    site = affine_sites(chain, x)[-1]
    assert site.layer is net[2]
    assert is_head(site, chain, net[:2](x), targets) is expected
    assert is_head(site, chain, net[:2](x) * 0, targets) is expected


def test_outputs_with_more_axes_and_convolutions_are_no_head():
    sequence = torch.randn(5, 2, 4)
    chain = build_chain(nn.Sequential(nn.Linear(4, 3)).eval(), sequence)
    site = affine_sites(chain, sequence)[-1]
    assert not is_head(site, chain, sequence, OutputTargets("multiclass"))

    image = torch.randn(5, 2, 3, 3)
    chain = build_chain(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()).eval(), image)
    site = affine_sites(chain, image)[-1]
    assert not is_head(site, chain, image, OutputTargets("multiclass"))


# Inside a composite stage


class Closed(nn.Module):
    """torch.fx cannot follow it; what comes after the last layer is given."""

    def __init__(self, after, width=3):
        super().__init__()
        self.body, self.head, self.skip = nn.Linear(4, 6), nn.Linear(6, width), nn.Linear(4, width)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("fixed", torch.arange(float(width)))
        self.after = after

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        beside = self.skip(x)
        return self.after(self, x, beside, self.head(torch.relu(self.body(x))))


def untrained(net):
    nn.init.zeros_(net.skip.weight)
    nn.init.zeros_(net.skip.bias)
    return net


def frozen(net):
    net.skip.requires_grad_(False)
    return untrained(net)


MULTICLASS, BINARY = OutputTargets("multiclass"), OutputTargets("binary")


@pytest.mark.parametrize(
    ("after", "prepare", "targets", "expected"),
    [
        (lambda net, x, beside, out: out, None, MULTICLASS, True),
        (
            lambda net, x, beside, out: out.clone().reshape(-1, 3).contiguous(),
            None,
            MULTICLASS,
            True,
        ),
        (
            lambda net, x, beside, out: out.softmax(1),
            None,
            OutputTargets("multiclass", head=SOFT),
            True,
        ),
        (lambda net, x, beside, out: out + x.sum(1, keepdim=True), None, MULTICLASS, True),
        (lambda net, x, beside, out: out[:, 0], None, BINARY, True),
        (lambda net, x, beside, out: out + beside, frozen, MULTICLASS, True),
        # what follows is more than the shape
        (lambda net, x, beside, out: out.relu(), None, MULTICLASS, False),
        (lambda net, x, beside, out: 2 * out, None, MULTICLASS, False),
        (lambda net, x, beside, out: out.flip(1), None, MULTICLASS, False),
        (lambda net, x, beside, out: out.flip(0), None, MULTICLASS, False),
        (lambda net, x, beside, out: out + net.fixed, None, MULTICLASS, False),
        (lambda net, x, beside, out: out + x[:, :3], None, MULTICLASS, False),
        (lambda net, x, beside, out: out - out.mean(0), None, MULTICLASS, False),
        (lambda net, x, beside, out: torch.stack([out, out], 2), None, MULTICLASS, False),
        (lambda net, x, beside, out: beside, None, MULTICLASS, False),
        # a branch of zeros that training would fill
        (lambda net, x, beside, out: out + beside, untrained, MULTICLASS, False),
        (lambda net, x, beside, out: out * net.scale, None, MULTICLASS, False),
        (lambda net, x, beside, out: out, None, OutputTargets("regression"), False),
    ],
)
def test_the_head_may_lie_inside_a_composite_stage(after, prepare, targets, expected):
    net = Closed(after, 1 if targets is BINARY else 3).eval()
    if prepare:
        prepare(net)
    x = torch.randn(8, 4)
    chain = Chain([Stage("network", net, x.shape[1:], net(x).shape[1:])])
    site = affine_sites(chain, x)[-1]
    assert site.name == "head"
    assert is_head(site, chain, x, targets) is expected


def test_a_layer_beside_a_shortcut_is_no_head():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.inner(x)

    x = torch.randn(5, 4)
    chain = build_chain(nn.Sequential(nn.Linear(4, 4), Shortcut()).eval(), x)
    site = affine_sites(chain, x)[-1]
    assert site.name == "1.inner"
    assert not is_head(site, chain, chain[:1](x), OutputTargets("multiclass"))
