"""The layerwise rule against the same steps by hand, and its measures against their definitions."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import make_inversion_pipeline
from featprop_sklearn.inversion.base import UnsupportedLayerError
from featprop_sklearn.networks import build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import LayerwiseRule, make_rule, propagate
from tests.propagation.distance import Distance


def network(seed=0):
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Linear(6, 10),
            nn.ReLU(),
            nn.Linear(10, 8),
            nn.Tanh(),
            nn.Linear(8, 4),
        )
        .double()
        .eval()
    )


@pytest.fixture
def problem():
    net = network()
    x = torch.randn(30, 6, dtype=torch.float64)
    return net, build_chain(net, x), x, torch.randint(0, 4, (30,))


TARGETS = OutputTargets("multiclass", margin=0.5)


def test_one_sweep_by_hand(problem):
    net, chain, x, y = problem
    found = propagate(LayerwiseRule(damping=0), chain, x, y, TARGETS, ["1", "2", "4"], 7).targets
    with torch.no_grad():
        features = list(chain.features(x))
        wanted = TARGETS.wanted(features[4], y)
        torch.testing.assert_close(found["4"], wanted, rtol=0, atol=1e-12)
        weight, bias = net[4].weight.numpy(), net[4].bias.numpy()
        x0 = features[3].numpy()
        step = x0 + (wanted.numpy() - bias - x0 @ weight.T) @ np.linalg.pinv(weight).T
        unreachable = np.clip(step, -1 + 1e-6, 1 - 1e-6)
        before_tanh = np.where(step == x0, features[2].numpy(), np.arctanh(unreachable))
        np.testing.assert_allclose(found["2"].numpy(), before_tanh, rtol=1e-9, atol=1e-9)
        weight, bias = net[2].weight.numpy(), net[2].bias.numpy()
        x0 = features[1].numpy()
        expected = x0 + (before_tanh - bias - x0 @ weight.T) @ np.linalg.pinv(weight).T
        np.testing.assert_allclose(found["1"].numpy(), expected, rtol=1e-8, atol=1e-8)


def test_it_is_the_inverse_of_the_pipeline_when_the_references_agree(problem):
    net, chain, x, y = problem
    pipeline = make_inversion_pipeline(net, start="2", damping=0)
    for row in range(3):
        with torch.no_grad():
            features = list(chain.features(x[row : row + 1]))
        pipeline.fit(features[1].numpy())
        wanted = TARGETS.wanted(features[-1], y[row : row + 1])
        found = propagate(
            LayerwiseRule(damping=0), chain, x[row : row + 1], y[row : row + 1], TARGETS, ["1"], 1
        ).targets["1"]
        np.testing.assert_allclose(
            pipeline.inverse_transform(wanted.numpy()), found.numpy(), rtol=1e-9, atol=1e-9
        )


def test_samples_that_are_right_by_the_margin_keep_their_features(problem):
    _, chain, x, y = problem
    rule = LayerwiseRule()
    found = propagate(rule, chain, x, y, OutputTargets("multiclass"), ["0", "1", "3"], 8)
    with torch.no_grad():
        features = dict(zip(chain.names, chain.features(x), strict=True))
        right = features["4"].argmax(1) == y
    assert right.any()
    for split, target in found.targets.items():
        assert torch.equal(target[right], features[split][right])
        assert (found.quality[split].displacement[right.numpy()] == 0).all()
        assert (found.quality[split].corrected[right.numpy()]).all()


def test_every_split_of_one_sweep_is_what_the_split_alone_gets(problem):
    _, chain, x, y = problem
    together = propagate(LayerwiseRule(), chain, x, y, TARGETS, ["0", "1", "2", "3", "4"], 30)
    for split, target in together.targets.items():
        alone = propagate(LayerwiseRule(), chain, x, y, TARGETS, [split], 30).targets[split]
        assert torch.equal(alone, target)


def test_in_range_targets_stay_in_what_the_layer_before_can_produce(problem):
    _, chain, x, y = problem
    for name, (low, high) in {"1": (0, np.inf), "3": (-1, 1)}.items():
        free = propagate(make_rule("layerwise", solver="auto", damping="auto"), chain, x, y,
                         TARGETS, [name], 30)  # fmt: skip
        kept = propagate(make_rule("layerwise_in_range", solver="auto", damping="auto"), chain, x,
                         y, TARGETS, [name], 30)  # fmt: skip
        outside = (free.targets[name] < low) | (free.targets[name] > high)
        assert outside.any()
        assert (kept.targets[name] >= low - 1e-9).all()
        assert (kept.targets[name] <= high + 1e-9).all()


@pytest.mark.parametrize("solver", ["direct", "lsqr", "torch"])
def test_solvers_agree(problem, solver):
    _, chain, x, y = problem
    expected = propagate(LayerwiseRule(), chain, x, y, TARGETS, ["0"], 30).targets["0"]
    found = propagate(LayerwiseRule(solver=solver), chain, x, y, TARGETS, ["0"], 30).targets["0"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_summary_weights_and_empty_rates(problem):
    _, chain, x, y = problem
    quality = propagate(LayerwiseRule(), chain, x, y, TARGETS, ["0"], 30).quality["0"]
    weights = np.arange(30.0)
    wrong = ~quality.correct
    expected = (weights * quality.corrected)[wrong].sum() / weights[wrong].sum()
    assert quality.summary(weights)["repair_rate"] == pytest.approx(expected)
    assert np.isnan(quality.summary(weights * quality.correct)["repair_rate"])


def test_targets_that_are_not_finite_are_refused(problem):
    _, chain, x, _ = problem
    features = list(chain.features(x))
    rule = LayerwiseRule().fit(chain, features, ["0"])
    with pytest.raises(ValueError, match=r"stage '4' are not finite.*propagation='joint'"):
        rule.targets(features, torch.full_like(features[-1], torch.nan))


def test_unknown_rule():
    with pytest.raises(ValueError, match=r"propagation must be one of .*'backwards'"):
        make_rule("backwards", solver="auto", damping="auto")


class Modulus(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 3, dtype=torch.cfloat)

    def forward(self, x):
        return self.embed(x.to(torch.cfloat)).abs()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (Distance, r"'sqrt' takes a number .*keepdim=True.* use propagation='joint'"),
        (Modulus, r"'abs_1' takes complex numbers, .* use propagation='joint'"),
    ],
)
def test_stages_that_take_no_rows_of_numbers_are_refused(build, text):
    x = torch.randn(6, 4)
    chain = build_chain(build().eval(), x)
    with torch.no_grad():
        features = list(chain.features(x))
    with pytest.raises(UnsupportedLayerError, match=text):
        LayerwiseRule().fit(chain, features, ["embed"])
