"""Training for interpretable gradients: worked figures, finite differences, every task."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.nn import functional as F

from featprop_sklearn import (
    AutoTrainer,
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
)
from featprop_sklearn.networks import build_chain
from featprop_sklearn.output_targets import Head, OutputTargets
from featprop_sklearn.training import Component, Labelled, pretrain_default_network
from featprop_sklearn.training.interpretable import (
    GRADIENT_ERRORS,
    WithInput,
    gradient_errors,
    input_gradients,
)
from featprop_sklearn.training.losses import TargetLoss, task_losses

SCALE_FREE = ("cosine", "histogram_intersection")


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


W1 = tensor([1, -1], [1, 1], [2, 0.5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mae", 0.5), ("mse", 1), ("cosine", 0.254644), ("histogram_intersection", 0.4)],
)
def test_errors_of_a_worked_example(name, expected):
    found = gradient_errors(name, tensor([1, -2, 0, 2]), tensor([1, 0, 0, 2]))
    assert found.tolist() == [pytest.approx(expected, abs=1e-6)]


def test_double_backpropagation_of_a_worked_example():
    w1 = W1.clone().requires_grad_()
    x = tensor([1, 2]).requires_grad_()
    logits = torch.relu(x @ w1.T) @ tensor([1, -1, 0.5], [-1, 0.5, -0.5]).T
    losses = F.cross_entropy(logits, torch.tensor([0]), reduction="none")
    delta, gamma = input_gradients(losses, logits, x)
    error = gradient_errors("cosine", delta, gamma)
    error.sum().backward()
    assert losses.item() == pytest.approx(1.701413, abs=1e-6)
    np.testing.assert_allclose(delta.detach(), [[-0.408787, 0.817574]], atol=1e-6)
    np.testing.assert_allclose(gamma, [[1.226362, 1.226362]], atol=1e-6)
    assert error.item() == pytest.approx(0.683772, abs=1e-6)
    assert w1.grad[1, 0] == pytest.approx(-1.138420, abs=1e-6)
    assert w1.grad[2, 1] == pytest.approx(0.379473, abs=1e-6)
    assert not gamma.requires_grad


# the loss -----------------------------------------------------------------------------------

HEADS = {
    "multiclass": (3, OutputTargets("multiclass"), torch.tensor([0, 2, 1, 1])),
    "binary": (1, OutputTargets("binary"), torch.tensor([0, 1, 1, 0])),
    "multilabel": (2, OutputTargets("multilabel"), torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]])),
    "regression": (2, OutputTargets("regression"), tensor([0, 1], [1, 2], [-1, 0], [3, 1])),
    "softmax": (3, OutputTargets("multiclass", head=Head("probabilities")), torch.tensor([0] * 4)),
}


@pytest.mark.parametrize(
    ("name", "head"),
    [*((name, "multiclass") for name in GRADIENT_ERRORS), *(("cosine", head) for head in HEADS)],
)
def test_derivatives_are_those_of_finite_differences_with_the_guided_gradient_fixed(name, head):
    width, output_targets, y = HEADS[head]
    torch.manual_seed(3)
    softmax = [nn.Softmax(dim=1)] if head == "softmax" else []
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, width), *softmax).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    weights = tensor([1, 2, 0.5, 1])[0]
    truth = {"y": y, "weight": weights}
    loss = TargetLoss(
        output_targets,
        **{"alpha": 0.0, "feature_only": False, "decay": 0.9, "label_smoothing": 0.1},
        **{"gradient_regularization": name, "gradient_weight": 0.7},
    )

    def predicted():
        start = x.clone().requires_grad_()
        feature = net[1](net[0](start))
        return net[2:](feature), feature, start

    def losses_of(output):
        return task_losses(output, y, output_targets, label_smoothing=0.1)

    prediction = predicted()
    _, gamma = input_gradients(losses_of(prediction[0]), prediction[0], prediction[2])
    loss(prediction, truth).backward()

    def value():
        output, _, start = predicted()
        losses = losses_of(output)
        (delta,) = torch.autograd.grad(losses.sum(), start)
        values = losses + 0.7 * gradient_errors(name, delta, gamma)
        return float((values * weights).sum().detach() / weights.sum())

    for parameter in net.parameters():
        flat, found = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(len(flat)):
            before = flat[i].item()
            values = []
            for step in (1e-6, -1e-6):
                flat[i] = before + step
                values.append(value())
            flat[i] = before
            assert found[i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    arrays(np.float64, (2, 3, 4), elements=st.floats(-10, 10).filter(lambda v: abs(v) > 1e-3)),
    st.floats(1e-3, 1e3),
)
def test_errors_are_bounded_and_zero_for_equal_gradients(values, scale):
    delta, gamma = torch.from_numpy(values)
    for name in GRADIENT_ERRORS:
        error = gradient_errors(name, delta, gamma)
        assert ((error > -1e-12) & error.isfinite()).all()
        assert gradient_errors(name, delta, delta).abs().max() < 1e-12
        if name in SCALE_FREE:
            assert (error < 2 + 1e-12).all()
            scaled = gradient_errors(name, scale * delta, gamma)
            torch.testing.assert_close(scaled, error, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", GRADIENT_ERRORS)
def test_a_gradient_without_direction_has_no_error(name):
    delta = tensor([0, 0], [1, 2], [1e-13, 0], [1, 2]).requires_grad_()
    gamma = tensor([1, 1], [0, 0], [1, 1], [2, 1])
    errors = gradient_errors(name, delta, gamma)
    errors.sum().backward()
    assert errors[:3].tolist() == [0, 0, 0]
    assert errors[3] > 0
    assert delta.grad.isfinite().all()
    assert not delta.grad[:3].any()


# training -----------------------------------------------------------------------------------


def component(net, x, y, task="multiclass", split=None, targets=None, validation=False):
    chain = build_chain(net.eval(), x)
    stop = len(chain) if split is None else split
    data = Labelled(x, y, torch.ones(len(x), dtype=x.dtype))
    return Component(
        chain.names[stop - 1],
        chain[:stop],
        chain[stop:],
        data,
        targets,
        OutputTargets(task),
        data if validation else None,
    )


def small_net(inplace=False):
    return nn.Sequential(
        *(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace)),
        *(nn.Dropout(0.2), nn.Linear(8, 6), nn.ReLU6(inplace), nn.Linear(6, 3)),
    ).double()


def table(n_samples=32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_samples, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 3, (n_samples,), generator=generator)


def flat_state(result):
    return torch.cat([value.double().ravel() for part in result.state for value in part.values()])


@pytest.mark.parametrize("inplace", [False, True])
def test_without_weight_it_is_the_ordinary_training(inplace):
    torch.manual_seed(0)
    part = component(small_net(inplace), *table(), validation=True)
    options = {"alpha": 0.0, "max_epochs": 3, "lr": 1e-2}
    plain = GradientTrainer(**options).train(part, batch_size=8, seed=0)
    measured = GradientTrainer(
        **options, gradient_regularization="cosine", gradient_weight=0
    ).train(part, batch_size=8, seed=0)
    # BatchNorm's statistics and their counts among them: the batch is seen once
    torch.testing.assert_close(flat_state(measured), flat_state(plain), rtol=1e-9, atol=1e-12)
    for theirs, mine in zip(plain.history[1:], measured.history[1:], strict=True):
        assert mine["valid_loss"] == pytest.approx(theirs["valid_loss"], rel=1e-9)
        assert mine["task_loss"] == pytest.approx(theirs["train_loss"], rel=1e-9)
        assert 0 < mine["gradient_error"] < 2
        assert "gradient_error" not in theirs


@pytest.mark.parametrize("name", GRADIENT_ERRORS)
def test_the_error_falls(name):
    torch.manual_seed(0)
    part = component(small_net(inplace=True), *table())
    errors = {}
    for weight in (0.0, 1.0 if name in SCALE_FREE else 100.0):
        trainer = GradientTrainer(
            alpha=0, max_epochs=20, lr=1e-2, gradient_regularization=name, gradient_weight=weight
        )
        history = trainer.train(part, batch_size=-1, seed=0).history
        errors[weight] = history[-1]["gradient_error"]
    assert max(errors) > 0
    assert errors[max(errors)] < 0.8 * errors[0.0]


def test_it_goes_together_with_feature_targets_and_a_frozen_downstream():
    torch.manual_seed(0)
    x, y = table()
    part = component(small_net(), x, y, split=4, targets=torch.randn(32, 8, dtype=torch.float64))
    trainer = GradientTrainer(
        alpha=0.5, max_epochs=2, lr=1e-2, gradient_regularization="cosine", gradient_weight=0.3
    )
    downstream = [p.clone() for p in part.after.parameters()]
    for entry in trainer.train(part, batch_size=-1, seed=0).history:
        together = entry["task_loss"] + entry["feature_weight"] * entry["feature_loss"]
        together += 0.3 * entry["gradient_error"]
        assert entry["train_loss"] == pytest.approx(together, rel=1e-9)
    for before, after in zip(downstream, part.after.parameters(), strict=True):
        assert torch.equal(before, after)


def test_both_gradients_drop_the_same_units():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 1)).double()
    for parameter in net.parameters():
        parameter.data.abs_()
    x = torch.rand(20, 4, dtype=torch.float64)
    # outputs too large, weights positive: no gradient is negative, and guiding changes nothing
    y = torch.full((20, 1), -1e3, dtype=torch.float64)
    trainer = GradientTrainer(alpha=0, max_epochs=1, lr=1e-5, gradient_regularization="mae")
    history = trainer.train(component(net, x, y, "regression"), batch_size=-1, seed=0).history
    assert history[0]["gradient_error"] == pytest.approx(0, abs=1e-9)


def test_a_weight_is_a_repetition():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    part = component(net, *table(12))
    times = torch.arange(12) % 3 + 1
    rows = torch.arange(12).repeat_interleave(times)
    weighted = replace(part, data=replace(part.data, weights=times.double()))
    repeated = replace(part, data=part.data.take(rows))
    trainer = GradientTrainer(
        alpha=0, max_epochs=5, lr=1e-2, gradient_regularization="cosine", gradient_weight=1.0
    )
    states = [flat_state(trainer.train(p, batch_size=-1, seed=0)) for p in (weighted, repeated)]
    torch.testing.assert_close(*states, rtol=1e-8, atol=1e-10)
    plain = flat_state(trainer.train(part, batch_size=-1, seed=0))
    assert not torch.allclose(states[0], plain, rtol=1e-4)


def test_a_network_that_begins_in_place_and_one_with_attention():
    torch.manual_seed(0)
    x, y = table(12)
    trainer = GradientTrainer(alpha=0, max_epochs=1, lr=1e-3, gradient_regularization="cosine")
    in_place = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    history = trainer.train(component(in_place, x.clone(), y), batch_size=-1, seed=0).history
    assert 0 < history[0]["gradient_error"] < 2

    attention = nn.Sequential(
        nn.Unflatten(1, (5, 1)),
        nn.Linear(1, 4),
        nn.ReLU(inplace=True),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).double()
    history = trainer.train(component(attention, x, y), batch_size=-1, seed=0).history
    assert 0 < history[0]["gradient_error"] < 2


def test_the_wrapped_network_in_eval_mode_returns_what_it_did():
    net = WithInput(nn.Sequential(nn.Identity())).eval()
    x = torch.rand(2, 3)
    assert net(x) is x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)), "there is none in"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Hardtanh(), nn.Linear(4, 3)), "ReLU, ReLU6"),
    ],
)
def test_a_network_without_relus_is_refused(make, message):
    trainer = GradientTrainer(gradient_regularization="cosine")
    with pytest.raises(ValueError, match=message):
        trainer.train(component(make().double(), *table()), batch_size=-1, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_regularization": "l1"}, "must be None or one of .*'cosine'.*; got 'l1'"),
        ({"gradient_weight": -1}, "gradient_weight must be a number >= 0; got -1"),
        (
            {"gradient_regularization": "mae", "feature_only": True},
            "feature_only=True leaves out. Set one of the two",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradientTrainer(**options).check()


# estimators ---------------------------------------------------------------------------------


def trainer(**options):
    return GradientTrainer(
        max_epochs=2, lr=1e-3, gradient_regularization="cosine", gradient_weight=0.1, **options
    )


@pytest.mark.parametrize(
    ("estimator", "n_labels"),
    [
        (FeatureBackpropClassifier(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))), 3),
        (FeatureBackpropClassifier(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))), 2),
        (
            FeatureBackpropClassifier(
                nn.Sequential(nn.Linear(5, 4), nn.ReLU6(), nn.Linear(4, 3), nn.Softmax(dim=1))
            ),
            3,
        ),
        (FeatureBackpropRegressor(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))), 99),
        (FeatureBackpropClassifier(), 3),
    ],
)
def test_estimators(estimator, n_labels):
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, n_labels, size=60)
    weights = rng.uniform(0.5, 2, size=60)
    estimator.set_params(trainer=trainer(), validation_fraction=0.2, random_state=0)
    estimator.set_params(trainer__gradient_weight=0.05)
    estimator.fit(X, labels, sample_weight=weights)
    errors = [entry["gradient_error"] for entry in estimator.history_ if entry["epoch"]]
    assert len(errors) == 2
    assert np.isfinite(errors).all()
    estimator.partial_fit(X, labels)
    assert "gradient_error" in estimator.history_[-1]


def test_behind_an_earlier_split_the_input_is_the_feature_there():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, size=60)
    net = nn.Sequential(
        *(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
    )
    estimator = FeatureBackpropClassifier(net, split=["1", "4"], trainer=trainer(), random_state=0)
    estimator.fit(X, y)
    errors = {e["split"]: e["gradient_error"] for e in estimator.history_ if e["epoch"]}
    assert errors.keys() == {"1", "4"}
    assert np.isfinite([*errors.values()]).all()


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, tokens):
        return self.rest(self.embedding(tokens))


class Both(Tokens):
    def __init__(self):
        super().__init__()
        self.side = nn.Linear(5, 3)

    def forward(self, tokens, values):
        return super().forward(tokens) + self.side(values).relu()


def test_integers_have_no_gradient_but_floats_beside_them_do():
    rng = np.random.default_rng(0)
    tokens, y = rng.integers(0, 7, size=(60, 3)), rng.integers(0, 3, size=60)
    estimator = FeatureBackpropClassifier(Tokens(), trainer=trainer(), random_state=0)
    with pytest.raises(ValueError, match="reads its input as integers, such as token numbers"):
        estimator.fit(tokens, y)
    X = {"tokens": tokens, "values": rng.normal(size=(60, 5)).astype(np.float32)}
    estimator = FeatureBackpropClassifier(Both(), trainer=trainer(), random_state=0).fit(X, y)
    assert 0 < estimator.history_[-1]["gradient_error"] < 2


# the network that module=None stands for ------------------------------------------------------


def digits():
    X, y = load_digits(return_X_y=True)
    return X[:150], y[:150]


def pretrained(estimator, X, y, **options):
    """Fit without post-training."""
    trainer = GradientTrainer(alpha=0, max_epochs=0, **options)
    return estimator.set_params(trainer=trainer, random_state=0).fit(X, y)


def measured_error(estimator, X, y, name):
    """Have the history tell the error of a network, which a rate of 0 leaves as it is."""
    measuring = GradientTrainer(alpha=0, max_epochs=1, lr=0, gradient_regularization=name)
    estimator.set_params(trainer=measuring, warm_start=True).fit(X, y)
    return estimator.history_[-1]["gradient_error"]


@pytest.mark.parametrize("name", GRADIENT_ERRORS)
def test_the_default_network_is_pretrained_with_it(name):
    X, y = digits()
    options = {"gradient_regularization": name, "gradient_weight": 1.0}
    without, with_it, again = (
        pretrained(FeatureBackpropClassifier(), X, y, **chosen) for chosen in ({}, options, options)
    )
    for mine, same in zip(with_it.module_.parameters(), again.module_.parameters(), strict=True):
        assert torch.equal(mine, same)
    errors = [measured_error(estimator, X, y, name) for estimator in (without, with_it)]
    assert errors[1] < 0.8 * errors[0]
    assert with_it.score(X, y) == 1


def test_the_default_network_of_a_regression_is_pretrained_with_it():
    X, y = load_diabetes(return_X_y=True)
    errors = []
    for weight in (0.0, 1e3):
        options = {"gradient_regularization": "cosine", "gradient_weight": weight}
        estimator = pretrained(FeatureBackpropRegressor(validation_fraction=0), X, y, **options)
        errors.append(measured_error(estimator, X, y, "cosine"))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    "trainer", [AutoTrainer(), ClosedFormTrainer(), GradientTrainer(lr=1.0, gradient_weight=1.0)]
)
def test_of_the_trainer_pretraining_takes_nothing_else(trainer):
    X, y = table()
    data = Labelled(X, y, torch.ones(len(X), dtype=torch.float64))
    plain, found = (
        pretrain_default_network(data, 3, "multiclass", trainer=each, validation=None, seed=0)[0]
        for each in (GradientTrainer(), trainer)
    )
    assert all(
        torch.equal(*pair) for pair in zip(plain.parameters(), found.parameters(), strict=True)
    )


def test_parameters_are_checked_before_pretraining():
    with pytest.raises(ValueError, match=r"gradient_regularization must be None .*got 'l1'"):
        pretrained(FeatureBackpropClassifier(), *digits(), gradient_regularization="l1")
