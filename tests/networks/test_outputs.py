"""One tensor of outputs, out of whatever a forward returns."""

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass
from operator import itemgetter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch import Tensor, nn

from featprop_sklearn import FeatureBackpropClassifier, describe, split_points
from featprop_sklearn.networks import SingleOutput, build_chain, probe_network
from featprop_sklearn.networks.fingerprint import network_fingerprint

Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Result:
    logits: Tensor
    features: Tensor | None = None


class Body(nn.Module):
    """An MLP of three layers; ``finish`` says what it returns."""

    def __init__(self, finish, width=3):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5)
        self.c = nn.Linear(5, width)
        self.finish = finish

    def forward(self, x):
        features = torch.relu(self.b(torch.relu(self.a(x))))
        return self.finish(self.c(features), features)


STAGES = ["a", "relu", "b", "relu_1", "c"]

# what is returned, for logits and features
FORMS = {
    "dict": lambda o, f: {"features": f, "logits": o},
    "dataclass": lambda o, f: Result(o, f),
    "dataclass, one tensor": lambda o, f: Result(o),
    "object": lambda o, f: SimpleNamespace(logits=o, features=f),
    "named tuple": lambda o, f: Pair(o, f),
    "list of one": lambda o, f: [o],
    "only table in a tuple": lambda o, f: (f[:, None].repeat(1, 2, 2), o, f.shape[0], None),
    "nested": lambda o, f: {"hidden": (f[:, :, None].repeat(1, 1, 2),), "heads": [o]},
    "integers beside": lambda o, f: (o.argmax(1), o),
    "twice the same": lambda o, f: (o, o),
    "(n, c, 1, 1)": lambda o, f: o[:, :, None, None],
    "(n, c, 1, 1) in a tuple": lambda o, f: (o[:, :, None, None],),
}
each_form = pytest.mark.parametrize("finish", FORMS.values(), ids=FORMS.keys())


def rows(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator)


def wrapped(finish, **options):
    torch.manual_seed(0)
    body = Body(finish, **options).eval()
    plain = copy.deepcopy(body)
    plain.finish = lambda o, f: o
    return body, plain, probe_network(body, rows())


@each_form
def test_the_outputs_are_found(finish):
    body, plain, network = wrapped(finish)
    assert isinstance(network, SingleOutput)
    assert network.original_network is body
    for count in (1, 2, 5):
        x = rows(count, seed=1)
        assert torch.equal(network(x), plain(x))


@each_form
def test_the_chain_keeps_the_stages_of_the_network(finish):
    _, plain, network = wrapped(finish)
    chain = build_chain(network, rows())
    assert chain.names[: len(STAGES)] == STAGES
    assert {id(p) for p in chain.parameters()} == {id(p) for p in network.parameters()}
    for count in (1, 5):
        x = rows(count, seed=1)
        assert torch.equal(chain(x), plain(x))


def test_networks_of_one_tensor_stay_as_they_are():
    for width in (1, 3):
        _, _, network = wrapped(lambda o, f: o, width=width)
        assert isinstance(network, Body)
    _, _, network = wrapped(lambda o, f: o[:, 0])
    assert isinstance(network, Body)


def test_a_chain_needs_no_wrapper_made_before():
    body, _, network = wrapped(FORMS["dict"])
    assert build_chain(body, rows()).names == build_chain(network, rows()).names == STAGES
    assert split_points(body, rows()) == STAGES
    assert list(describe(body, rows()).index) == STAGES


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Body(FORMS["dict"])),
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(Body(FORMS["list of one"]))),
    ],
    ids=["flat", "nested"],
)
def test_the_last_part_of_a_sequential_is_opened_too(network):
    network[0] = nn.Linear(4, 4)
    chain = build_chain(network.eval(), rows())
    assert chain.names[:2] == ["0", "1"]
    assert len(chain) == 7


def test_layers_of_torch_that_return_a_tuple():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x):
            out, state = self.rnn(x[:, None])
            return {"logits": out[:, 0], "state": state}

    network = probe_network(Recurrent().eval(), rows())
    assert network(rows(5)).shape == (5, 3)


def test_features_kept_by_the_forward_are_no_proxies():
    class Keeps(Body):
        def forward(self, x):
            self.kept = self.a(x)
            return super().forward(x)

    network = probe_network(Keeps(FORMS["dict"]).eval(), rows())
    assert build_chain(network, rows()).names[-5:] == STAGES
    assert type(network.original_network.kept) is Tensor


class Squeezed(nn.Module):
    """``squeeze`` without a dimension takes away the batch of a single row."""

    def __init__(self, width, middle=False, softmax=False):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, width)
        self.middle, self.softmax = middle, softmax

    def forward(self, x):
        h = torch.relu(self.a(x))
        h = self.b(h.squeeze() if self.middle else h)
        h = h if self.middle else h.squeeze()
        return h.log_softmax(dim=1) if self.softmax else h


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"width": 1}, ["a", "relu", "b", "squeeze"]),
        ({"width": 3, "middle": True}, ["a", "relu", "reshape"]),
        ({"width": 3, "middle": True, "softmax": True}, ["network"]),
    ],
    ids=["one logit", "in the middle", "refuses one row"],
)
def test_a_single_row_keeps_its_row(options, names):
    network = probe_network(Squeezed(**options).eval(), rows())
    chain = build_chain(network, rows())
    several = network(rows())
    assert chain.names == names
    for run in (network, chain):
        assert run(rows()[:1]).shape == several[:1].shape
        torch.testing.assert_close(run(rows()[:1]), several[:1])


def test_survives_copy_and_pickle():
    _, _, network = wrapped(as_dict)
    expected = network(rows())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(rows()), expected)
        assert network_fingerprint(twin) == network_fingerprint(network)
    other = SingleOutput(network.original_network, (itemgetter("features"),))
    assert network_fingerprint(other) != network_fingerprint(network)


def as_dict(outputs, features):
    return {"features": features, "logits": outputs}


def test_mode_reaches_the_network():
    _, _, network = wrapped(FORMS["dict"])
    assert not network.training
    assert network.train().original_network.training
    assert not network.eval().original_network.training


class TestFit:
    X, y = load_iris(return_X_y=True)

    def fit(self, finish, **options):
        torch.manual_seed(0)
        body = Body(finish)
        return FeatureBackpropClassifier(body, random_state=0, **options).fit(self.X, self.y)

    @pytest.mark.parametrize("form", ["dict", "dataclass", "(n, c, 1, 1)"])
    @pytest.mark.parametrize("split", ["b", "auto"])
    def test_gives_what_the_bare_logits_give(self, form, split):
        plain = self.fit(lambda o, f: o, split=split)
        fitted = self.fit(FORMS[form], split=split)
        np.testing.assert_allclose(
            fitted.predict_proba(self.X), plain.predict_proba(self.X), atol=1e-5
        )
        assert isinstance(fitted.module_, SingleOutput)
        assert type(plain.module_) is Body

    def test_refits_are_named_as_the_network_s_own_layers(self):
        fitted = self.fit(as_dict, trainer="closed_form")
        refitted = fitted.history_[-1]["refitted"]
        assert refitted == ["a", "b", "c"]
        assert all(type(fitted.network_.get_submodule(name)) is nn.Linear for name in refitted)
        assert list(fitted.module_.state_dict()) == list(fitted.network_.state_dict())

    def test_names_inside_a_stage_are_the_network_s_own(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.logits = Body(lambda o, f: o), nn.Linear(3, 3)

            def forward(self, x):
                h = self.body(x)
                return {"logits": self.logits(h) + h}

        fitted = FeatureBackpropClassifier(Block(), trainer="closed_form", random_state=0)
        fitted.fit(self.X, self.y)
        assert split_points(Block(), self.X)[-1] == "add"
        assert fitted.history_[-1]["refitted"] == ["body.a", "body.b", "body.c", "logits"]

    def test_one_layer_is_called_as_without_a_wrapper(self):
        image = self.X[:, :, None, None]
        layer = nn.Conv2d(4, 3, 1)
        fitted = FeatureBackpropClassifier(layer, trainer="closed_form", random_state=0)
        fitted.fit(image, self.y)
        assert isinstance(fitted.module_, SingleOutput)
        assert fitted.history_[-1]["refitted"] == ["network"]
        assert type(fitted.network_) is nn.Conv2d

    def test_several_inputs_and_several_outputs(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Linear(2, 4), nn.Linear(2, 4)
                self.fc = nn.Linear(8, 3)

            def forward(self, left, right):
                h = torch.tanh(torch.cat([self.left(left), self.right(right)], dim=1))
                return {"features": h, "logits": self.fc(h)}

        X = {"left": self.X[:, :2], "right": self.X[:, 2:]}
        fitted = FeatureBackpropClassifier(Two(), split="fc", random_state=0).fit(X, self.y)
        assert isinstance(fitted.module_, SingleOutput)
        assert split_points(Two(), X) == ["cat", "tanh", "fc"]
        assert fitted.score(X, self.y) > 0.9

    def test_pickles_and_goes_on(self):
        fitted = self.fit(as_dict, warm_start=True)
        loaded = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(loaded.predict(self.X), fitted.predict(self.X))
        loaded.fit(self.X, self.y)
        assert type(loaded.module_.original_network) is Body

    @pytest.mark.parametrize("options", [{"width": 3, "middle": True}, {"width": 1}])
    def test_one_row_is_predicted_as_among_others(self, options):
        y = self.y if options["width"] == 3 else (self.y > 0).astype(int)
        torch.manual_seed(0)
        fitted = FeatureBackpropClassifier(Squeezed(**options), random_state=0).fit(self.X, y)
        several = fitted.predict_proba(self.X[:5])
        np.testing.assert_allclose(fitted.predict_proba(self.X[:1]), several[:1], atol=1e-6)
        assert fitted.feature_targets(self.X[:1], y[:1]).shape[0] == 1


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 3, 1)])
def test_axes_of_length_1_are_dropped(shape):
    class Spread(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x).reshape(-1, *shape)

    torch.manual_seed(0)
    network, x = Spread().eval(), torch.randn(8, 4)
    found = probe_network(network, x)
    assert torch.equal(found(x), network.fc(x))
    assert torch.equal(found(x[:1]), network.fc(x[:1]))


class TestErrors:
    def test_two_candidates(self):
        body = Body(lambda o, f: (o, {"deep": f}))
        with pytest.raises(
            ValueError,
            match=r"The network \(Body\) must return one tensor; it returned tuple, in which "
            r"\[0\] \(8, 3\) and \[1\]\['deep'\] \(8, 5\) could each be the logits or values\. "
            "Name one of them 'logits' in a dict, or wrap it in a module that returns these alone",
        ):
            probe_network(body.eval(), rows())

    def test_no_candidate(self):
        body = Body(lambda o, f: {"mean": o.mean(), "classes": o.argmax(1)})
        with pytest.raises(
            ValueError,
            match=r"it returned dict, in which no floating tensor has shape \(n_samples, "
            r"n_outputs\) \(it holds \['mean'\] \(\), \['classes'\] \(8,\)\)\. Wrap it in a",
        ):
            probe_network(body.eval(), rows())

    def test_no_tensor(self):
        body = Body(lambda o, f: "logits")
        with pytest.raises(
            ValueError, match=r"it returned str, in which no floating .*n_outputs\)\. Wrap it"
        ):
            probe_network(body.eval(), rows())

    def test_a_table_that_does_not_follow_the_rows_is_none(self):
        body = Body(lambda o, f: (torch.zeros(8, 2), o))
        assert torch.equal(probe_network(body.eval(), rows())(rows()), body(rows())[1])
