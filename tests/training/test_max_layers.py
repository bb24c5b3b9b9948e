"""A sweep over some of the layers, and sums that do not depend on how they are cut."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from featprop_sklearn import AutoTrainer, ClosedFormTrainer, FeatureBackpropClassifier
from featprop_sklearn.networks import affine_sites, build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import Component, Labelled, carried, layer_sums
from featprop_sklearn.training.auto import MOST_LAYERS
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


@pytest.mark.parametrize(
    ("split", "max_layers", "refitted"),
    [
        (None, 1, ["6", "8"]),  # the last layer's logistic regression comes on top
        (None, 3, ["2", "4", "6", "8"]),
        (None, 4, ["0", "2", "4", "6", "8"]),
        (None, 99, ["0", "2", "4", "6", "8"]),
        (None, None, ["0", "2", "4", "6", "8"]),
        ("5", 1, ["4"]),  # counted from the split
        ("5", 2, ["2", "4"]),
    ],
)
def test_the_last_layers_are_refitted_and_the_others_stay(blobs, split, max_layers, refitted):
    part = component(network(), *blobs, split)
    trainer = ClosedFormTrainer(sweeps=1, tol=0.0, max_layers=max_layers)
    result = trainer.train(part, batch_size=64)
    sweep = result.history[1]
    layers = [name for name in ("0", "2", "4", "6", "8") if split is None or name < split]
    assert sweep["refitted"] == refitted
    assert sweep["left_out"] == [name for name in layers if name not in refitted]
    assert changed(part, result) == refitted


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
        assert result.history[0]["refitted"] == ["4", "6", "8"]
        assert result.history[0]["left_out"] == ["0", "2"]
    assert set(seen) == {"4", "6", "8"}


def test_the_automatic_sweep_of_a_deep_network_is_bounded(blobs):
    deep = network(depth=MOST_LAYERS + 2)
    classifier = FeatureBackpropClassifier(deep, trainer=AutoTrainer(polish=()), random_state=0)
    classifier.fit(*blobs)
    sweep = next(entry for entry in classifier.history_ if entry.get("sweep") == 1)
    assert sweep["left_out"] == ["0", "2"]
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
