"""Networks behind one tensor: the inputs arrive as they were, the network stays what it was."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close

from featprop_sklearn.data import pack
from featprop_sklearn.networks import (
    SingleOutput,
    Unpack,
    build_chain,
    input_dtype,
    reads_integers,
    refuse_sequence,
    unwrap,
    with_inputs,
)
from featprop_sklearn.networks.fingerprint import network_fingerprint

DIGITS = load_digits()
PIXELS = DIGITS.data.astype(np.float32)
TOKENS = DIGITS.data.astype(np.int64)
X = {"upper": PIXELS[:, :32], "lower": PIXELS[:, 32:].reshape(-1, 4, 8)}


class TwoInputs(nn.Module):
    """A child, and a parameter of its own, called like what its wrapper might hold."""

    def __init__(self):
        super().__init__()
        self.network, self.layout = nn.Linear(32, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Linear(16, 10))

    def forward(self, upper, lower, mask=None):
        first = self.network(upper) * self.scale
        features = torch.cat([first, self.layout(lower).mean(dim=1)], dim=1)
        self.kept = features  # as some networks do
        return self.head(features if mask is None else features * mask[:, None])


class OneDict(TwoInputs):
    def forward(self, inputs):
        return super().forward(**inputs)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 2)
        self.fc = nn.Linear(128, 10)

    def forward(self, tokens):
        return self.fc(self.embed(tokens).flatten(1))


class NumbersAndTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.numbers = nn.Linear(32, 8)
        self.tokens = Tokens()

    def forward(self, numbers, tokens, *, weight=1.0):
        return self.tokens(tokens)[:, :8] + weight * self.numbers(numbers)


class Anything(TwoInputs):
    def forward(self, **inputs):
        return super().forward(**inputs)


class Starred(TwoInputs):
    def forward(self, *inputs):
        return super().forward(*inputs)


class Recorder(nn.Module):
    """Keep what arrives."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, a, b, c, d):
        self.seen = dict(a=a, b=b, c=c, d=d)
        return a.flatten(1) * self.weight


def behind(network, X):
    packed, layout = pack(X, None, "Test")
    reader = with_inputs(network.eval(), packed, layout)
    return reader, torch.from_numpy(packed).to(input_dtype(reader))


def named(X):
    return {name: torch.from_numpy(values) for name, values in X.items()}


def test_every_input_arrives_as_it_was():
    given = {
        "a": DIGITS.images,
        "b": TOKENS[:, :5],
        "c": DIGITS.data[:, 9] > 3,
        "d": DIGITS.target,
    }
    network = Recorder()
    reader, x = behind(network, given)
    reader(x)
    for name, tensor in network.seen.items():
        expected = torch.from_numpy(given[name])
        assert tensor.dtype == expected.dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("make", [TwoInputs, OneDict, Anything])
def test_outputs_names_and_states_are_the_network_s(make):
    network = make()
    reader, x = behind(network, X)
    given = named(X)
    direct = network(given) if make is OneDict else network(**given)
    assert_close(reader(x), direct)
    assert list(reader.state_dict()) == list(network.state_dict())
    assert list(reader.parameters()) == list(network.parameters())
    assert [name for name, _ in reader.named_modules()] == [n for n, _ in network.named_modules()]
    assert reader.original_network is network
    assert "upper (32,) float, lower (4, 8) float" in repr(reader)


def test_chain_goes_into_the_network():
    network = TwoInputs()
    reader, x = behind(network, X)
    chain = build_chain(reader, x[:8])
    assert chain.names == ["cat", "head.0", "head.1", "head.2"]
    assert torch.equal(chain(x), reader(x))
    assert {*chain.parameters()} == {*network.parameters()}
    assert "Proxy" not in type(network.kept).__name__  # tracing leaves nothing on the network


def test_mode_and_weights_are_shared():
    network = TwoInputs()
    reader, x = behind(network, X)
    reader.train()
    assert all(part.training for part in (*network.modules(), *reader.modules()))
    reader.eval()
    assert not any(part.training for part in (*network.modules(), *reader.modules()))
    before = reader(x)
    state = {name: value + 1 for name, value in reader.state_dict().items()}
    reader.load_state_dict(state)
    assert torch.equal(network.scale, state["scale"])
    assert not torch.equal(reader(x), before)
    reader.double()
    assert network.scale.dtype == torch.float64


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stand_alone(way):
    reader, x = behind(TwoInputs(), X)
    twin = way(reader)
    expected = reader(x)
    assert network_fingerprint(twin) == network_fingerprint(way(twin))
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.zero_()
    assert_close(twin(x), expected)
    assert twin.original_network.scale is twin.scale
    assert_close(twin.original_network(**named(X)), expected)
    twin.float()  # replaces no parameter that one of them keeps
    assert_close(twin(x), expected)


def test_fingerprints_tell_layouts_apart():
    network = TwoInputs()
    packed, layout = pack({"lower": X["lower"], "upper": X["upper"]}, None, "Test")
    other = with_inputs(network, packed, layout)
    assert network_fingerprint(other) != network_fingerprint(behind(network, X)[0])


def test_optional_inputs_may_be_given():
    network = TwoInputs()
    mask = DIGITS.target > 4
    reader, x = behind(network, {**X, "mask": mask})
    expected = network(**named(X), mask=torch.from_numpy(mask))
    assert_close(reader(x), expected)


def test_integers_for_a_layer_that_computes_are_floats():
    network = NumbersAndTokens()
    numbers, tokens = TOKENS[:, :32], TOKENS
    expected = network(torch.from_numpy(numbers).float(), torch.from_numpy(tokens))
    for given in (
        {"numbers": numbers, "tokens": tokens},
        {"numbers": PIXELS[:, :32], "tokens": PIXELS},
        {"numbers": numbers, "tokens": PIXELS.astype(np.float64)},
    ):
        reader, x = behind(network, given)
        assert_close(reader(x), expected)
    numbers = numbers * 10**8  # too large for integers, not for floats
    assert isinstance(behind(network, {"numbers": numbers, "tokens": tokens})[0], Unpack)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float64])
def test_one_array_of_tokens(kind):
    network = Tokens().eval()
    reader = with_inputs(network, TOKENS.astype(kind), None)
    assert reads_integers(reader)
    assert_close(reader(torch.from_numpy(PIXELS)), network(torch.from_numpy(TOKENS)))
    assert build_chain(reader, torch.from_numpy(PIXELS)).names[-2:] == ["flatten", "fc"]


def test_tokens_reach_networks_of_16_bits():
    network = nn.Sequential(nn.Embedding(1000, 2), nn.Flatten()).bfloat16()
    tokens = np.arange(900, 960).reshape(20, 3)  # bfloat16 holds integers up to 256
    reader = with_inputs(network, tokens, None)
    assert input_dtype(reader) == torch.float32
    x = torch.from_numpy(tokens)
    assert torch.equal(reader(x.float()), network(x))
    reader, x = behind(TwoInputs().bfloat16(), X)
    assert x.dtype == torch.float32
    assert reader(x).dtype == torch.bfloat16


def test_what_reads_the_inputs_is_found_behind_what_picks_the_output():
    network = Tokens().bfloat16().eval()
    wrapped = SingleOutput(with_inputs(network, TOKENS, None))
    assert reads_integers(wrapped)
    assert input_dtype(wrapped) == torch.float32
    assert list(wrapped.state_dict()) == list(network.state_dict())
    assert unwrap(wrapped) is network
    assert wrapped.train() is wrapped
    assert network.fc.training


def test_a_network_of_one_floating_input_is_left_alone():
    network = nn.Linear(64, 10)
    for samples in (PIXELS, TOKENS, TOKENS > 7):
        assert with_inputs(network, samples, None) is network
    assert with_inputs(network, PIXELS[:, :3], None) is network  # who runs it says what is wrong
    network = TwoInputs()
    assert with_inputs(network, PIXELS, None) is network
    assert input_dtype(network.double()) == torch.float64


def test_one_row():
    assert reads_integers(with_inputs(Tokens(), TOKENS[:1], None))
    reader, x = behind(TwoInputs(), {name: values[:1] for name, values in X.items()})
    assert reader(x).shape == (1, 10)


def test_the_random_state_is_kept():
    class Noisy(TwoInputs):
        def forward(self, upper, lower):
            return super().forward(upper + torch.randn_like(upper), lower)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = Noisy()
    torch.set_rng_state(before)
    behind(network, X)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("network", "given", "text"),
    [
        (
            TwoInputs(),
            {"uper": PIXELS, "lower": PIXELS},
            r"X\['uper'\] is no argument of the network's forward \(TwoInputs\)\. Did you mean "
            r"'upper'\? It takes \['upper', 'lower', 'mask'\]\.",
        ),
        (
            Starred(),
            {"u": PIXELS, "v": PIXELS},
            r"X\['u'\] is no argument of .* \(Starred\)\. Its arguments have no names: wrap it in "
            r"a module that gives them some, such as forward\(self, u, v\)\.",
        ),
        (
            nn.Linear(3, 2),
            {"pixels": PIXELS},
            r"\(Linear\) refused the dict X as the one argument 'input'.* pass X\['pixels'\]\.",
        ),
        (
            TwoInputs(),
            {"zzz": PIXELS, "lower": PIXELS},
            r"X\['zzz'\] is no argument of the network's forward \(TwoInputs\)\. It takes",
        ),
        (
            TwoInputs(),
            {"upper": PIXELS},
            r"X lacks 'lower', which the network's forward \(TwoInputs\) requires; it has the keys",
        ),
        (
            TwoInputs(),
            {"upper": PIXELS[:, :31], "lower": PIXELS},
            r"\(TwoInputs\) refused the dict X, with upper \(31,\) float; lower \(64,\) float "
            r"\(shapes of one sample\): .*cannot be multiplied .* Its arguments are \['upper', ",
        ),
        (
            OneDict(),
            {"upper": PIXELS, "bottom": PIXELS},
            r"\(OneDict\) refused the dict X as the one argument 'inputs', with upper .*'bottom'",
        ),
        (
            NumbersAndTokens(),
            {"numbers": PIXELS[:, :32] / 16, "tokens": PIXELS / 16},
            r"\(NumbersAndTokens\) refused the dict X, with .* tokens \(64,\) float .*Long",
        ),
        (
            NumbersAndTokens(),
            {"numbers": PIXELS[:, :32], "tokens": TOKENS + 17},
            r"refused the dict X, with .* tokens \(64,\) int .*index out of range",
        ),
    ],
)
def test_dicts_that_do_not_fit(network, given, text):
    with pytest.raises(ValueError, match=text):
        behind(network, given)


def test_integers_that_are_none():
    late = np.vstack([PIXELS, PIXELS[:1] / 16])
    with pytest.raises(ValueError, match=r"X holds 0\.\d+, but the network reads whole numbers"):
        with_inputs(Tokens(), late, None)
    with pytest.raises(
        ValueError,
        match=r"\(Tokens\) refused X of shape \(n_samples, 64\) as integers: index out of range.*; "
        r"and as floats: .* with numbers that its embeddings have a row for",
    ):
        with_inputs(Tokens(), TOKENS + 17, None)
    with pytest.raises(ValueError, match=r"X\['tokens'\] holds 16777217\. Integers reach the net"):
        behind(Tokens(), {"tokens": np.vstack([TOKENS, TOKENS[:1] + 2**24 + 1])})


@pytest.mark.parametrize("kind", [tuple, list])
def test_sequences_of_arrays(kind):
    halves = kind([PIXELS[:, :32], PIXELS[:, 32:]])
    with pytest.raises(
        ValueError,
        match=rf"X is a {kind.__name__} of 2 arrays, and the network \(TwoInputs\) takes several "
        r"inputs, .* X=\{'upper': X\[0\], 'lower': X\[1\]\}\. If .* stack them: np\.stack\(X\)\.",
    ):
        refuse_sequence(TwoInputs(), halves)
    refuse_sequence(nn.Linear(64, 10), kind(PIXELS))  # rows
    refuse_sequence(nn.Conv2d(1, 2, 3), kind(DIGITS.images[:, None]))  # images
    refuse_sequence(None, kind(PIXELS))
