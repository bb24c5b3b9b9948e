"""The joint rule against scipy, on real data, and at its edges."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import nn

from featprop_sklearn.networks import affine_sites, build_chain, output_ranges
from featprop_sklearn.output_targets import Head, OutputTargets, auto_margin
from featprop_sklearn.propagation import nearest_acceptable
from featprop_sklearn.propagation.least_norm import least_norm
from tests.propagation.distance import Distance


def tail_of(chain):
    return lambda value, rows: chain(value)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:600] / 16).reshape(-1, 1, 8, 8), torch.tensor(y[:600])


@pytest.fixture(scope="module")
def cnn(digits):
    x, y = digits
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1)
    )
    net.extend([nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 20), nn.ReLU()])
    net.append(nn.Linear(20, 10)).double()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(40):
        for rows in torch.randperm(300).split(30):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def search(net, x, y, split, targets, **options):
    chain = build_chain(net, x[:8])
    at = chain.names.index(split)
    with torch.no_grad():
        feature, output = chain[: at + 1](x), chain(x)
        found = nearest_acceptable(
            tail_of(chain[at + 1 :]),
            feature,
            output,
            y,
            targets,
            allowed=output_ranges(chain)[at],
            **options,
        )
        return feature, output, found, chain[at + 1 :](found.targets)


@pytest.mark.parametrize("split", ["0", "1", "3", "4", "5", "7", "8"])
@pytest.mark.parametrize("shift", ["same", "transposed"])
def test_every_split_reaches_the_label(digits, cnn, split, shift):
    x, y = digits
    x = x[300:420] if shift == "same" else x[300:420].transpose(2, 3)
    y = y[300:420]
    margin = auto_margin(cnn(x).detach())
    targets = OutputTargets("multiclass", margin=margin)
    feature, output, found, reached = search(cnn, x, y, split, targets)
    right = targets.correct(output, y)
    bar = 0.99 if shift == "same" else 0.95  # the network is wrong about most transposed digits
    assert targets.correct(reached, y)[right].double().mean() >= 0.999
    assert targets.correct(reached, y)[~right].double().mean() >= bar
    assert targets.reached(reached, y).double().mean() >= bar
    if split in ("1", "4", "5", "8"):
        assert (found.targets >= 0).all()
    met = np.array(found.status) == "met"
    assert torch.equal(found.targets[met], feature[met])
    assert found.worked_on == (~met).sum()


@pytest.mark.parametrize("split", ["7", "8"])
def test_targets_are_as_near_as_those_of_a_generic_optimiser(digits, cnn, split):
    x, y = digits[0][300:380].transpose(2, 3), digits[1][300:380]
    targets = OutputTargets("multiclass", margin=auto_margin(cnn(x).detach()))
    feature, output, found, reached = search(cnn, x, y, split, targets)
    assert targets.reached(reached, y).all()
    chain = build_chain(cnn, x[:8])
    after = chain[chain.names.index(split) + 1 :]
    ours, theirs = [], []
    for i in torch.nonzero(~targets.reached(output, y))[:20, 0]:
        conditions = targets.conditions(output[i : i + 1], y[i : i + 1])
        others = [j for j in range(10) if j != y[i]]

        def slack(e, i=i, conditions=conditions, others=others):
            moved = feature[i : i + 1] + torch.as_tensor(e)
            return conditions.slack(after(moved))[0, others]

        def derivative(e, slack=slack):
            return torch.autograd.functional.jacobian(slack, torch.tensor(e)).numpy()

        with torch.no_grad():
            lower = (-feature[i]).clamp_max(0).numpy() if split == "8" else None
        answer = minimize(
            lambda e: (e @ e / 2, e),
            np.zeros(feature.shape[1]),
            jac=True,
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda e, slack=slack: slack(e).detach().numpy(),
                "jac": derivative,
            },
            bounds=None if lower is None else [(low, None) for low in lower],
        )
        if slack(answer.x).min() > -1e-3:
            ours.append(float((found.targets[i] - feature[i]).norm()))
            theirs.append(np.linalg.norm(answer.x))
    assert len(theirs) >= 15
    assert np.mean(ours) <= 1.05 * np.mean(theirs)


@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("ranged", [False, True])
def test_the_step_is_that_of_a_quadratic_program(equality, ranged):
    rng = np.random.default_rng(0)
    J, b = rng.normal(size=(12, 3, 7)), rng.normal(size=(12, 3))
    low, high = -np.abs(rng.normal(size=7)) - 0.5, np.full(7, np.inf)
    allowed = (torch.tensor(low), torch.tensor(high)) if ranged else None
    step, _ = least_norm(torch.tensor(J), torch.tensor(b), equality=equality, allowed=allowed)
    for i in range(12):
        answer = minimize(
            lambda e: (e @ e / 2, e),
            np.zeros(7),
            jac=True,
            method="SLSQP",
            bounds=list(zip(low, high, strict=True)) if ranged else None,
            constraints={
                "type": "eq" if equality else "ineq",
                "fun": lambda e, i=i: J[i] @ e - b[i],
                "jac": lambda e, i=i: J[i],
            },
            options={"ftol": 1e-12, "maxiter": 300},
        )
        if answer.success:
            np.testing.assert_allclose(step[i], answer.x, atol=2e-4)


@pytest.mark.parametrize(
    ("targets", "width", "y"),
    [
        (OutputTargets("multiclass", margin=0.5), 2, torch.arange(30) % 2),
        (OutputTargets("multiclass", margin=0.5, step=0.5), 5, torch.arange(30) % 5),
        (OutputTargets("multiclass", "one_hot"), 4, torch.arange(30) % 4),
        (OutputTargets("multiclass", "max_assign", 0.3), 4, torch.arange(30) % 4),
        (OutputTargets("multiclass", margin=0.2), 40, torch.arange(30)),
        (OutputTargets("binary", margin=0.5), 1, (torch.arange(30) % 2)[:, None]),
        (OutputTargets("multilabel", margin=0.5), 3, torch.arange(90).reshape(30, 3) % 2),
        (OutputTargets("regression"), 1, torch.linspace(-1, 1, 30)[:, None]),
        (OutputTargets("regression"), 3, torch.linspace(-1, 1, 90).reshape(30, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_task(targets, width, y, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, width)).to(dtype)
    y = y.to(dtype) if targets.task == "regression" else y
    x = torch.randn(30, 6, dtype=dtype)
    _, output, found, reached = search(net, x, y, "0", targets)
    assert found.targets.dtype == dtype
    if targets.step == 1:
        assert targets.reached(reached, y).double().mean() > 0.95
    else:
        before = targets._violation(output, y).clamp_min(0)
        after = targets._violation(reached, y).clamp_min(0)
        torch.testing.assert_close(after, before / 2, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("head", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_probabilities(head):
    torch.manual_seed(0)
    name = "probabilities" if isinstance(head, nn.Softmax) else "log_probabilities"
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4), head).double()
    targets = OutputTargets("multiclass", margin=1.0, head=Head(name))
    y = torch.arange(30) % 4
    *_, reached = search(net, torch.randn(30, 6).double(), y, "1", targets)
    assert targets.reached(reached, y).all()


def test_units_that_nothing_wakes_block_and_move_nothing():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.copy_(torch.tensor([1.0, 0.0]))
    y = torch.ones(4, dtype=torch.int64)
    targets = OutputTargets("multiclass", margin=1.0)
    feature, _, found, _ = search(net, torch.randn(4, 3).double(), y, "0", targets)
    assert found.status == ["blocked"] * 4
    assert torch.equal(found.targets, feature)


def test_a_tail_without_derivatives_blocks():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    net = nn.Sequential(nn.Linear(3, 4), Detached(), nn.Linear(4, 2)).double()
    targets = OutputTargets("multiclass", margin=100.0)
    y = torch.zeros(4, dtype=torch.int64)
    feature, _, found, _ = search(net, torch.randn(4, 3).double(), y, "0", targets)
    assert set(found.status) == {"blocked"}
    assert torch.equal(found.targets, feature)


def test_only_samples_outside_are_worked_on(digits, cnn):
    x, y = digits[0][300:400], digits[1][300:400]
    chain = build_chain(cnn, x[:8])
    feature, output = chain[:8](x).detach(), cnn(x).detach()
    targets = OutputTargets("multiclass", margin=auto_margin(output))
    rows_seen = set()

    def tail(value, rows):
        rows_seen.update(rows.tolist())
        return chain[8:](value)

    found = nearest_acceptable(tail, feature, output, y, targets)
    outside = torch.nonzero(~targets.reached(output, y))[:, 0].tolist()
    assert 0 < found.worked_on < len(x)
    assert set(outside) <= rows_seen
    assert len(rows_seen) == found.worked_on


def test_inside_a_residual_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return x + torch.tanh(self.inner(x))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    chain = build_chain(net, x)
    site = next(site for site in affine_sites(chain, x) if site.layer is net[1].inner)
    before = chain[: site.stage](x).detach()
    _, feature = site.read(chain, before)
    targets = OutputTargets("multiclass", margin=0.5)
    tail = site.tail(chain, before)
    every = torch.arange(20)
    torch.testing.assert_close(tail(feature, every), net(x))
    found = nearest_acceptable(tail, feature.detach(), net(x).detach(), y, targets)
    reached = targets.reached(tail(found.targets, every), y)
    assert reached.double().mean() > 0.9
    assert not net[1].inner._forward_hooks


def test_where_a_network_saturates_no_target_is_out_of_sight():
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(5, 5), nn.Sigmoid())]
    net = nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3)).double().eval()
    x, y = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 3
    # more than sigmoids can make of anything
    targets = OutputTargets("multiclass", margin=100.0)
    feature, output, found, moved = search(net, x, y, "0", targets)
    assert "reached" not in found.status
    length, size = (found.targets - feature).norm(dim=1), feature.norm(dim=1)
    assert (length <= 100 * size * (1 + 1e-12)).all()
    assert (length == 0).any()
    conditions = targets.conditions(output, y)
    before, after = (conditions.violation(conditions.slack(o)) for o in (output, moved))
    assert (after <= before).all()


def test_features_of_one_number():
    torch.manual_seed(0)
    net, x = Distance().double().eval(), torch.randn(30, 4, dtype=torch.float64)
    y = torch.arange(30) % 2
    targets = OutputTargets("binary", margin=0.5)
    feature, output, found, _ = search(net, x, y, "sqrt", targets)
    sign = 2 * y - 1
    assert feature.shape == found.targets.shape == (30,)
    # the nearest number whose logit 2 − 4 f is ± half of the margin
    expected = torch.where(sign * output >= 0.25, feature, (2 - 0.25 * sign) / 4)
    torch.testing.assert_close(found.targets, expected, rtol=0, atol=1e-3)  # AIM beyond it
    assert found.status.count("stalled") == 0
