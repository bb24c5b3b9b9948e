"""A sweep over some of the layers, which ones, and sums that do not depend on how they are cut."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from featprop_sklearn import AutoTrainer, ClosedFormTrainer, FeatureBackpropClassifier
from featprop_sklearn.networks import affine_sites, build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import (
    Component,
    Labelled,
    carried,
    layer_shares,
    layer_sums,
    sweeper,
)
from featprop_sklearn.training.auto import MOST_LAYERS
from featprop_sklearn.training.gram import RIDGES
from featprop_sklearn.training.layer_shares import explained_shares
from featprop_sklearn.training.layer_sums import layer_sums as summed


def network(depth=4, width=12):
    """Affine layers "0", "2", ..., the last of which gives logits."""
    torch.manual_seed(0)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 3)).double().eval()


@pytest.fixture(scope="module")
def blobs():
    """Three classes that a random network does not know."""
    draw = np.random.default_rng(0)
    y = np.arange(150) % 3
    return draw.normal(size=(150, 12)) + 2 * np.eye(3, 12)[y], y


def component(net, X, y, split=None):
    chain = build_chain(net, torch.tensor(X[:4]))
    stop = len(chain) if split is None else chain.names.index(split) + 1
    data = Labelled(torch.tensor(X), torch.tensor(y), torch.ones(len(y), dtype=torch.float64))
    targets = OutputTargets("multiclass", margin=2.0)
    return Component(chain.names[stop - 1], chain[:stop], chain[stop:], data, None, targets)


def changed(part, result):
    """Names of the layers whose weights are others than before."""
    own = part.private()
    result.load_into(own.stages)
    pairs = zip(part.stages, own.stages, strict=True)
    return [
        before.name
        for before, after in pairs
        if not all(map(torch.equal, before.module.parameters(), after.module.parameters()))
    ]


def shares_by_hand(net, layers, X, y):
    """1 − GCV error of a ridge regression of the loss's gradient at each output, over Σ‖g‖²."""
    found = []
    for layer in layers:
        seen = {}
        handle = layer.register_forward_hook(lambda _, args, out, seen=seen: seen.update(x=args[0]))
        out = net(torch.tensor(X))
        handle.remove()
        # dloss/dW = gᵀx and dloss/db = Σg, so with one sample at a time the bias's is g
        losses = nn.functional.cross_entropy(out, torch.tensor(y), reduction="none")
        g = np.array(
            [torch.autograd.grad(loss, layer.bias, retain_graph=True)[0].numpy() for loss in losses]
        )
        x = np.hstack([seen["x"].detach().numpy(), np.ones((len(X), 1))])
        errors = []
        for ridge in RIDGES * np.linalg.norm(x, 2) ** 2:
            hat = x @ np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T)
            rss = np.square(g - hat @ g).sum()
            errors.append(rss / (1 - np.trace(hat) / len(x)) ** 2)
        found.append(1 - min(errors) / np.square(g).sum())
    return found


@pytest.mark.parametrize("n_samples", [150, 10])  # more than a layer has coefficients, and fewer
def test_shares_are_what_ridge_regression_of_the_gradients_explains(blobs, n_samples):
    net, (X, y) = network(), (blobs[0][:n_samples], blobs[1][:n_samples])
    part = component(net, X, y)
    sites = affine_sites(part.stages, torch.tensor(X[:4]))
    found = explained_shares(part.stages, sites, part.data, part.output_targets, batch_size=60)
    wanted = shares_by_hand(net, [site.layer for site in sites], X, y)
    np.testing.assert_allclose(found, np.maximum(wanted, 0), atol=1e-7)
    assert max(found) > 0.05


def test_a_weight_is_a_repetition(blobs):
    part = component(network(), *blobs)
    sites = affine_sites(part.stages, part.data.inputs[:4])
    times = torch.arange(150) % 3
    rows = torch.arange(150).repeat_interleave(times)
    weighted = Labelled(part.data.inputs, part.data.y, times.double())
    shares = [
        explained_shares(part.stages, sites, data, part.output_targets, batch_size=200)
        for data in (weighted, part.data[rows])
    ]
    np.testing.assert_allclose(*shares, rtol=1e-8)


def test_scales_are_no_matter(blobs):
    net = network()
    twin = nn.Sequential(*net[:2], nn.Linear(12, 12), nn.Linear(12, 12), *net[3:]).double()
    with torch.no_grad():  # a layer that hands on a hundredth, and one that makes up for it
        twin[2].weight.copy_(net[2].weight / 100)
        twin[2].bias.copy_(net[2].bias / 100)
        twin[3].weight.copy_(100 * torch.eye(12))
        twin[3].bias.zero_()
    plain, scaled = (
        explained_shares(
            part.stages,
            affine_sites(part.stages, part.data.inputs[:4]),
            part.data,
            part.output_targets,
            batch_size=150,
        )
        for part in (component(net, *blobs), component(twin, *blobs))
    )
    np.testing.assert_allclose(plain[:2], scaled[:2], rtol=1e-6)


@pytest.mark.parametrize(
    ("split", "max_layers", "refitted"),
    [
        (None, 1, ["2", "8"]),  # the last layer's logistic regression comes on top
        (None, 2, ["2", "6", "8"]),  # of layers that are alike the later
        (None, 3, ["0", "2", "6", "8"]),
        (None, 4, ["0", "2", "4", "6", "8"]),
        (None, 99, ["0", "2", "4", "6", "8"]),
        (None, None, ["0", "2", "4", "6", "8"]),
        ("5", 1, ["2"]),  # up to the split
        ("5", 2, ["0", "2"]),
    ],
)
def test_layers_that_could_learn_most_are_refitted_and_the_others_stay(
    monkeypatch, blobs, split, max_layers, refitted
):
    shares = {"0": 0.2, "2": 0.3, "4": 0.1, "6": 0.2}
    monkeypatch.setattr(
        sweeper, "explained_shares", lambda chain, sites, *_: [shares[site.name] for site in sites]
    )
    part = component(network(), *blobs, split)
    trainer = ClosedFormTrainer(sweeps=2, tol=0.0, max_layers=max_layers)
    result = trainer.train(part, batch_size=64)
    layers = [name for name in ("0", "2", "4", "6", "8") if split is None or name < split]
    assert len(result.history) == 3
    for sweep in result.history[1:]:
        assert sweep["refitted"] == refitted
        assert sweep["left_out"] == [name for name in layers if name not in refitted]
    assert changed(part, result) == refitted


def test_a_layer_that_is_always_given_the_same_is_left_out(blobs):
    net = network()
    nn.init.zeros_(net[4].weight)
    part = component(net, *blobs, "7")
    result = ClosedFormTrainer(sweeps=1, max_layers=1).train(part, batch_size=64)
    assert result.history[1]["refitted"] == ["4"]  # neither the last, nor those not listened to


class EachStep(nn.Module):
    """One layer for every step of a sequence: linear, or a convolution that sees one step."""

    def __init__(self, layer, head):
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x):
        steps = self.layer(x) if isinstance(self.layer, nn.Linear) else self.layer(x.mT).mT
        return self.head(torch.tanh(steps).mean(dim=1))


@pytest.mark.parametrize("most", [4096, 100])  # all rows of the layers, and some
def test_a_convolution_is_a_linear_layer_at_each_position(monkeypatch, blobs, most):
    monkeypatch.setattr(layer_shares, "ROWS", (most, most))
    torch.manual_seed(0)
    linear, head = nn.Linear(4, 5), nn.Linear(5, 3)
    convolution = nn.Conv1d(4, 5, 1)
    convolution.load_state_dict({"weight": linear.weight[..., None], "bias": linear.bias})
    X = blobs[0].reshape(150, 3, 4)
    shares = []
    for layer in (linear, convolution):
        part = component(EachStep(layer, head).double().eval(), X, blobs[1])
        sites = affine_sites(part.stages, torch.tensor(X[:4]))
        found = explained_shares(part.stages, sites, part.data, part.output_targets, batch_size=64)
        shares.append(found)
    np.testing.assert_allclose(*shares, rtol=1e-8)
    assert min(shares[0]) > 0.05


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_layer_whose_inputs_overflow_has_no_share(blobs, bad):
    part = component(network(), *blobs)
    sites = affine_sites(part.stages, part.data.inputs[:4])
    part.data.inputs[7] = bad
    shares = explained_shares(part.stages, sites, part.data, part.output_targets, batch_size=150)
    assert shares[0] == 0


def test_as_many_layers_as_there_are_make_no_difference(blobs):
    part = component(network(), *blobs)
    whole, bounded = (
        ClosedFormTrainer(max_layers=max_layers).train(part, batch_size=64)
        for max_layers in (None, 4)
    )
    for one, other in zip(whole.state, bounded.state, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name])


def test_chunks_are_refitted_in_the_same_layers(blobs):
    part = component(network(), *blobs)
    seen, trainer = {}, ClosedFormTrainer(max_layers=2)
    for rows in (slice(0, 70), slice(70, None)):
        chunk = copy.copy(part)
        object.__setattr__(chunk, "data", part.data[rows])
        result = trainer.train_chunk(chunk, seen, batch_size=64)
        refitted = result.history[0]["refitted"]
        assert len(refitted) == 3
        assert refitted[-1] == "8"
        assert sorted(refitted + result.history[0]["left_out"]) == ["0", "2", "4", "6", "8"]
        assert list(seen) == refitted  # those of the first chunk, in the second too


def test_the_automatic_sweep_of_a_deep_network_is_bounded(blobs):
    deep = network(depth=MOST_LAYERS + 2)
    classifier = FeatureBackpropClassifier(deep, trainer=AutoTrainer(polish=()), random_state=0)
    classifier.fit(*blobs)
    sweep = next(entry for entry in classifier.history_ if entry.get("sweep") == 1)
    assert len(sweep["left_out"]) == 2
    assert len(sweep["refitted"]) == MOST_LAYERS + 1
    every = clone(classifier).set_params(trainer__closed_form=ClosedFormTrainer(sweeps=1))
    sweep = next(entry for entry in every.fit(*blobs).history_ if entry.get("sweep") == 1)
    assert sweep["left_out"] == []


@pytest.mark.parametrize("max_layers", [0, -1, 2.0, True, "all"])
def test_other_numbers_of_layers_are_refused(blobs, max_layers):
    message = f"max_layers must be None or an integer >= 1; got {max_layers!r}"
    trainer = ClosedFormTrainer(max_layers=max_layers)
    with pytest.raises(ValueError, match=message):
        trainer.check()
    with pytest.raises(ValueError, match=message):
        FeatureBackpropClassifier(network(), trainer=trainer).fit(*blobs)


def convolutional():
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(54, 3)).double().eval()


@pytest.mark.parametrize("budget", ["FEATURE_BUDGET", "ROW_BUDGET"])
def test_sums_do_not_depend_on_how_much_is_held_at_a_time(monkeypatch, budget):
    x = torch.randn(30, 1, 6, 6, dtype=torch.float64)
    y, targets = torch.arange(30) % 3, OutputTargets("multiclass", margin=2.0)
    data = Labelled(x, y, torch.arange(30, dtype=torch.float64) % 4 + 1)
    chain = build_chain(convolutional(), x[:4])
    sites = affine_sites(chain, x[:4])
    at_once = [summed(chain, site, data, targets, 30) for site in sites]
    monkeypatch.setattr(layer_sums, budget, 1)
    for site, whole in zip(sites, at_once, strict=True):
        bit_by_bit = summed(chain, site, data, targets, 30)
        for one, other in zip(vars(whole).values(), vars(bit_by_bit).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_features_kept_on_the_way_forward_change_nothing(monkeypatch, blobs):
    part = component(network(), *blobs)
    kept = ClosedFormTrainer(sweeps=2).train(part, batch_size=64)
    monkeypatch.setattr(carried, "ROOM", 0)
    anew = ClosedFormTrainer(sweeps=2).train(part, batch_size=64)
    assert len(kept.history) == len(anew.history) > 1
    for one, other in zip(kept.state, anew.state, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-8, atol=1e-8)
