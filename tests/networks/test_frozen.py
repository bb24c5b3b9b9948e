"""What a network runs under no_grad is not trained; what can only be saved by its weights."""

import copy
import pickle

import pytest
import torch
from sklearn.datasets import load_iris
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from featprop_sklearn import FeatureBackpropClassifier, split_points
from featprop_sklearn.networks import build_chain, private_copy

X, y = load_iris(return_X_y=True)


class Probed(nn.Module):
    """A body without gradients below a head."""

    def __init__(self, *, traceable=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.traceable, self.kept = traceable, None

    def forward(self, x):
        if not self.traceable and x.shape[1] != 4:
            raise ValueError("another width")
        with torch.no_grad():
            self.kept = self.body(x)
        return self.head(torch.relu(self.hidden(self.kept)))


class ForInference(Probed):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Shared(Probed):
    """The frozen layer runs again, with gradients."""

    def forward(self, x):
        with torch.no_grad():
            scale = self.body(x).mean(1, keepdim=True)
        return self.head(torch.relu(self.hidden(self.body(x) * scale)))


@pytest.mark.parametrize("traceable", [True, False])
def test_what_runs_without_gradients_is_frozen(traceable):
    network = private_copy(Probed(traceable=traceable).double())
    chain = build_chain(network, torch.from_numpy(X[:8]))
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    assert [name for name in chain.names if name.startswith("body")]
    assert split_points(network, X) == ["hidden", "relu", "head"]
    assert network.kept.grad_fn is None


@pytest.mark.parametrize("make", [ForInference, Shared])
def test_what_may_learn_is_not(make):
    network = private_copy(make().double())
    build_chain(network, torch.from_numpy(X[:8]))
    assert all(p.requires_grad for p in network.parameters())


def test_what_the_user_froze_stays_frozen():
    network = Shared().double()
    network.hidden.requires_grad_(False)
    build_chain(network.eval(), torch.from_numpy(X[:8]))
    assert not any(p.requires_grad for p in network.hidden.parameters())
    assert all(p.requires_grad for p in network.body.parameters())


@pytest.mark.parametrize("trainer", ["gradient", "closed_form"])
def test_its_weights_stay_in_fit(trainer):
    torch.manual_seed(0)
    network = Probed().double()
    fitted = FeatureBackpropClassifier(network, trainer=trainer, random_state=0).fit(X, y)
    before, after = network.state_dict(), fitted.network_.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {"body.0.weight", "body.0.bias"} <= same
    assert "head.weight" not in same or "hidden.weight" not in same


def test_parametrised_layers_are_saved_by_their_weights(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3)).double()
    fitted = FeatureBackpropClassifier(copy.deepcopy(network), random_state=0).fit(X, y)
    with pytest.raises(RuntimeError, match=r"only supported through state_dict\(\)"):
        pickle.dumps(fitted)
    torch.save(fitted.network_.state_dict(), tmp_path / "weights.pt")
    network.load_state_dict(torch.load(tmp_path / "weights.pt"))
    with torch.no_grad():
        assert (network(torch.from_numpy(X)).argmax(1).numpy() == fitted.predict(X)).all()
