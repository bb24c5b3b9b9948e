"""No refit of a layer raises the loss, or leaves weights that are no numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier
from featprop_sklearn.networks import affine_sites, build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import Component, Labelled
from featprop_sklearn.training.backtracking import HALVINGS, move_weights
from featprop_sklearn.training.component import SplitNetwork
from featprop_sklearn.training.layer_sums import LONGEST, layer_sums
from featprop_sklearn.training.losses import mean_task_loss


def one_weight(value=0.0):
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize("halvings", range(HALVINGS + 1))
def test_a_change_is_halved_until_the_loss_falls(halvings):
    layer, share = one_weight(), 0.5**halvings
    best = 0.6 * share  # nearer to the change that is taken than to none
    taken = move_weights(layer, torch.ones(1, 1, 1), lambda: float((layer.weight - best).abs()))
    assert taken == layer.weight.item() == share


@pytest.mark.parametrize(
    "change", [1.0, -1e300, np.inf, np.nan, 0.0], ids=["up", "far", "inf", "nan", "nothing"]
)
def test_what_lowers_no_loss_is_dropped_to_the_last_bit(change):
    layer = one_weight(0.1)
    share = move_weights(
        layer,
        torch.full((1, 1, 1), change, dtype=torch.float64),
        lambda: float((layer.weight - 0.1).square()),
    )
    assert share == 0
    assert torch.equal(layer.weight, one_weight(0.1).weight)


class Attention(nn.Module):
    """Two inputs of a softmax are layers of their own; a sharp one has almost no derivatives."""

    def __init__(self, width, sharpness):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.sharpness = sharpness

    def forward(self, x):
        similar = self.sharpness * self.q(x) @ self.k(x).mT
        return x + similar.softmax(dim=-1) @ self.v(x)


def attention_network(sharpness, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (8, 8)), Attention(8, sharpness), nn.Flatten(), nn.Linear(64, 10)
    )


def digits_component(network, seed, n_samples=120):
    images, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(labels))[:n_samples]
    x = torch.from_numpy(images[rows] / 16).float()
    data = Labelled(x, torch.from_numpy(labels[rows]), torch.ones(n_samples))
    chain = build_chain(network, x[:4])
    targets = OutputTargets("multiclass", margin=8.0, multiple=8.0)
    return Component(chain.names[-1], chain, chain[:0], data, None, targets)


def loss_of(part, state=None):
    part = part.private()
    if state is not None:
        SplitNetwork(part.stages, part.after).restore(state)
    return mean_task_loss(part.stages, part.data, part.output_targets, 64)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    sharpness=st.sampled_from([0.1, 1.0, 30.0, 1000.0]),
    seed=st.integers(0, 1000),
    sweeps=st.integers(1, 2),
)
def test_sweeps_leave_finite_weights_and_no_higher_loss(sharpness, seed, sweeps):
    part = digits_component(attention_network(sharpness, seed), seed)
    result = ClosedFormTrainer(sweeps=sweeps).train(part, batch_size=64)
    weights = [values for state in result.state for values in state.values()]
    assert all(torch.isfinite(values).all() for values in weights)
    assert loss_of(part, result.state) <= loss_of(part)
    assert max(values.abs().max() for values in weights) < 1e3


@pytest.fixture(scope="module")
def barely_trained_vit():
    """Of 200 digits, after 12 epochs: one whose keys a sweep without bounds drove to 1e24."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(config)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    x, y = images(slice(0, 200))
    for _ in range(12):
        for rows in torch.randperm(200).split(40):
            loss = F.cross_entropy(network(x[rows]).logits, y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def images(rows):
    digits = load_digits()
    x = torch.from_numpy(digits.images[rows, None] / 16).float()
    return x, torch.from_numpy(digits.target[rows])


@pytest.mark.parametrize("trainer", [ClosedFormTrainer(sweeps=1, multiples=(8.0,)), "auto"])
def test_a_barely_trained_transformer_keeps_weights_of_its_own_size(barely_trained_vit, trainer):
    x, y = images(slice(200, 400))
    x_test, y_test = images(slice(400, 900))
    classifier = FeatureBackpropClassifier(
        barely_trained_vit, trainer=trainer, validation_fraction=0, random_state=0
    ).fit(x.numpy(), y.numpy())
    largest = max(float(values.abs().max()) for values in classifier.module_.state_dict().values())
    assert largest < 100
    with torch.no_grad():
        before = (barely_trained_vit(x_test).logits.argmax(1) == y_test).double().mean()
    assert classifier.score(x_test.numpy(), y_test.numpy()) > before


def sums_of(network, path):
    part = digits_component(network, seed=0)
    chain, x = part.stages, part.data.inputs
    (site,) = (site for site in affine_sites(chain, x[:4]) if site.name.endswith(path))
    with torch.no_grad():
        outputs = site.read(chain, chain[: site.stage](x))[1]
    return layer_sums(chain, site, part.data, part.output_targets, 64), outputs


@pytest.mark.parametrize("sharpness", [1.0, 1000.0])
def test_no_layer_is_asked_for_more_than_twice_its_outputs(sharpness):
    sums, outputs = sums_of(attention_network(sharpness, 0), "k")
    assert 0 < sums.square.item() <= LONGEST**2 * outputs.double().square().sum()


def test_a_layer_that_puts_out_nothing_yet_is_asked_for_something():
    network = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    sums, outputs = sums_of(network, "0")
    assert not outputs.any()
    assert sums.square.item() > 0
