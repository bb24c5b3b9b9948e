"""What a few runs say about networks that cannot be trained sample by sample."""

import copy
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier
from featprop_sklearn.networks import as_network, build_chain, private_copy, probe_network
from featprop_sklearn.networks.probe import random_state_kept


class Run(nn.Module):
    """Two layers, and a function of the second one's output."""

    def __init__(self, finish, *layers):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.inner = nn.Sequential(*layers)
        self.finish = finish

    def forward(self, x):
        return self.finish(self.b(torch.relu(self.inner(self.a(x)))))


@dataclass
class Kept:
    inside: dict
    late: float = field(init=False)


def rows(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator)


def probe(network, x=None):
    return probe_network(network.eval(), rows(8, 4) if x is None else x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_sound_networks_pass(dtype, count):
    network = Run(nn.Softmax(dim=1), nn.BatchNorm1d(6), nn.Dropout()).to(dtype)
    assert probe(network, rows(count, 4).to(dtype)) is network


@pytest.mark.parametrize("count", [2, 8])
def test_convolutions_pass(count):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert probe(network, rows(count, 1, 8, 8)) is network


class TestMixedSamples:
    text = r"The network \(Run\) mixes the samples of a batch: .* \(relative difference {}"

    @pytest.mark.parametrize(
        "finish",
        [
            lambda o: o - o.mean(dim=0),
            lambda o: o + o.sum(dim=0) / 50,
            lambda o: o.softmax(dim=0),
            lambda o: o.cumsum(dim=0),
            lambda o: o.flip(0),
            lambda o: o[torch.arange(len(o)) * 0 + len(o) - 1],
        ],
        ids=["mean", "sum", "softmax", "cumsum", "flip", "last"],
    )
    def test_by_the_forward(self, finish):
        with pytest.raises(ValueError, match=self.text.format(".*Look for means, maxima or norm")):
            probe(Run(finish))

    @pytest.mark.parametrize("name", ["0", "1"])
    def test_by_batch_norm(self, name):
        layers = [nn.Identity(), nn.Identity()]
        layers[int(name)] = nn.BatchNorm1d(6, track_running_stats=False)
        cause = rf".*statistics takes those of the batch \(inner\.{name}\): use track_running_stats"
        with pytest.raises(ValueError, match=self.text.format(cause)):
            probe(Run(nn.Identity(), *layers))

    def test_by_batch_norm_that_takes_one_row(self):
        network = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()
        )
        with pytest.raises(ValueError, match=r"mixes the samples.*of the batch \(1\)"):
            probe(network, rows(8, 1, 4, 4))

    def test_rounding_of_outputs_near_zero_is_no_mixing(self):
        class Cancels(nn.Module):
            def forward(self, x):
                # 1e-8, but for rounding that depends on the batch size and on the other rows
                small = 1e-8 + 1e-7 * x.mean()
                return torch.where(torch.arange(len(x)) == len(x) // 2, small, 1.0)[:, None]

        network = Cancels()
        assert probe(network) is network

    def test_rounding_is_no_mixing(self):
        network = Run(lambda o: o * (1 + 2e-3 * (len(o) == 1)))  # as other kernels for one row
        assert probe(network) is network


class TestRepeated:
    def test_quantisation_observers(self):
        from torch.ao.quantization import MovingAverageMinMaxObserver

        class Observed(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.observer = nn.Linear(4, 3), MovingAverageMinMaxObserver()

            def forward(self, x):
                x = self.observer(self.fc(x))
                return x / (self.observer.max_val + 1)

        net, x = Observed().eval(), torch.randn(8, 4)
        net(10 * x)
        with pytest.raises(ValueError, match=r"again .*\. Observers .* module\.apply\(torch\.ao"):
            probe_network(net, x)

    def test_noise(self):
        network = Run(lambda o: o + 0.01 * torch.randn_like(o))
        with pytest.raises(
            ValueError,
            match=r"\(Run\) gives other outputs when it runs on the same rows again \(relative "
            r"difference 0\.\d+\)\. Make it deterministic in eval mode: draw noise only if self",
        ):
            probe(network)

    @pytest.mark.parametrize("read", [probe, lambda net: build_chain(net, rows(8, 4))])
    def test_the_global_random_state_stays(self, read):
        network = Run(lambda o: o + 1e-6 * torch.randn_like(o))
        before = torch.get_rng_state()
        read(network)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
class TestRandomState:
    def test_it_is_kept(self, place, accelerator):
        device = torch.device(accelerator if place == "accelerator" else place)
        before = self.states(accelerator)
        with random_state_kept(device):
            torch.randn(3, device=device)
        assert self.equal(self.states(accelerator), before)

    def test_a_seed_is_that_of_the_device_alone(self, place, accelerator):
        device = torch.device(accelerator if place == "accelerator" else place)
        before = self.states(accelerator)
        drawn = []
        for _ in range(2):
            with random_state_kept(device, seed=3):
                drawn.append((torch.randn(3), torch.randn(3, device=device)))
                if device.type == "cpu":
                    assert self.equal(self.states(accelerator)[1:], before[1:])
        assert self.equal(*drawn)
        assert torch.equal(drawn[0][0], torch.randn(3, generator=torch.Generator().manual_seed(3)))
        assert self.equal(self.states(accelerator), before)

    def states(self, accelerator):
        return torch.get_rng_state(), torch.get_device_module(accelerator).get_rng_state()

    def equal(self, ones, others):
        return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


class TestBatchDimension:
    advice = "It seems to read the batch in another dimension .* batch_first=True"

    @pytest.mark.parametrize("time", [8, 5])
    def test_time_first(self, time):
        class TimeFirst(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.LSTM(4, 3)

            def forward(self, x):
                return self.rnn(x)[0][-1]

        with pytest.raises(
            ValueError,
            match=rf"\(TimeFirst\) must return one row per sample; for 8 samples it returned shape "
            rf"\({time}, 3\).*{self.advice}",
        ):
            probe(TimeFirst(), rows(8, time, 4))

    def test_outputs_first(self):
        with pytest.raises(ValueError, match=rf"returned shape \(3, 8\)\. {self.advice}"):
            probe(Run(lambda o: o.T))


class TestOutputs:
    def test_class_numbers(self):
        with pytest.raises(
            ValueError,
            match=r"\(Run\) must return floating-point logits or values; it returned "
            r"torch\.int64\. Class numbers \(argmax\) cannot be trained: return what they are",
        ):
            probe(Run(lambda o: o.argmax(1)))

    def test_one_label_a_pixel(self):
        with pytest.raises(
            ValueError,
            match=r"must return one row of outputs per sample, shape \(n_samples, n_outputs\); it "
            r"returned shape \(n_samples, 2, 8, 8\)\. Pool or flatten them first; one label a pix",
        ):
            probe(nn.Conv2d(1, 2, 1), rows(8, 1, 8, 8))


class TestInputs:
    def test_several(self):
        class Two(nn.Module):
            def forward(self, upper, lower, scale=1.0):
                return upper + scale * lower

        with pytest.raises(
            ValueError,
            match=r"\(Two\) refused X .*Its forward takes 2 inputs \(upper, lower\) and got one: "
            "pass X as a dict of arrays by these names",
        ):
            probe(Two())

    @pytest.mark.parametrize(
        "forward",
        [
            nn.Embedding(5, 3),
            lambda x: nn.functional.one_hot(x, 5),
            lambda x: torch.zeros(5)[x],
        ],
        ids=["embedding", "one hot", "index"],
    )
    def test_integers(self, forward):
        class Tokens(nn.Module):
            def forward(self, x):
                return forward(x).flatten(1)

        with pytest.raises(
            ValueError, match=r"torch\.float32.*It takes integers, as nn\.Embedding does: pass X as"
        ):
            probe(Tokens())

    def test_a_shape_that_does_not_fit(self):
        with pytest.raises(
            ValueError,
            match=r"The network \(Run\) refused X of shape \(n_samples, 5\) and dtype "
            r"torch\.float32: .*Pass X in the shape that the network takes, or 2-D with input_sh",
        ):
            probe(Run(nn.Identity()), rows(8, 5))

    def test_a_fixed_batch_size(self):
        class Fixed(nn.Module):
            def forward(self, x):
                return x.view(8, 4)

        with pytest.raises(
            ValueError,
            match=r"\(Fixed\) takes 8 samples and refuses one: .*\. Its forward must take any "
            "number of rows, also one or two, with the batch in the first dimension",
        ):
            probe(Fixed())

    def test_another_fixed_batch_size(self):
        with pytest.raises(ValueError, match="It was tried on 8 rows; it has to take any number"):
            probe(nn.Unflatten(0, (4, 4)))

    @pytest.mark.parametrize(
        "network",
        [
            nn.Linear(4, 3),
            nn.BatchNorm1d(4),
            nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1)),
            nn.GRU(4, 3),
        ],
        ids=lambda network: type(network).__name__,
    )
    @pytest.mark.parametrize("cast", [torch.Tensor.float, torch.Tensor.bfloat16])
    def test_two_dtypes(self, network, cast):
        class Casts(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network

            def forward(self, x):
                return self.inner(cast(x))

        with pytest.raises(
            ValueError,
            match=r"X comes in torch\.float64: leave numbers in the dtype that comes \(no "
            r"\.float\(\), no autocast inside\), and register constants as buffers\.",
        ):
            probe(Casts().double(), rows(8, 4).double())

    @pytest.mark.parametrize("exported", [2, 8])
    def test_exported_programs(self, exported):
        net = nn.Sequential(nn.Linear(4, 3))
        program = torch.export.export(net, (rows(exported, 4),)).module()
        with pytest.raises(ValueError, match="An exported program runs on the batch size that it"):
            probe_network(program, rows(8, 4))


class TestNotLoaded:
    def test_lazy(self):
        network = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
        with pytest.raises(
            ValueError,
            match=r"module \(Sequential\) is not initialised: 1\.weight gets its shape at the first"
            r" run \(nn\.Lazy\.\.\.\)\. Run it on a few rows, and load or train its weights",
        ):
            as_network(network)
        network(rows(2, 4))
        assert as_network(network).module is network

    def test_meta(self):
        with pytest.raises(
            ValueError,
            match=r"\(Linear\) has no weights yet: weight is on the meta device\. Load them first",
        ):
            as_network(nn.Linear(4, 3, device="meta"))

    def test_quantised(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch moves its quantisation elsewhere
            network = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.Linear(4, 3)), {nn.Linear}, dtype=torch.qint8
            )
        with pytest.raises(
            ValueError,
            match=r"\(Sequential\) is quantised: the weights of 0 \(Linear\) are packed integers, "
            "which cannot be trained. Pass the network that it was made from, and quantise the res",
        ):
            as_network(network)


class TestWrappers:
    def test_several_devices(self):
        network = nn.Linear(4, 3)
        assert as_network(nn.DataParallel(network)).module is network

    def test_compiled(self):
        network = nn.Linear(4, 3)
        assert (
            as_network(nn.DataParallel(torch.compile(network, backend="eager"))).module is network
        )


class TestPrivateCopy:
    def test_tensors_with_a_history(self):
        network = Run(nn.Identity())
        network.kept = network(rows(2, 4))
        network.inner.maps = {"all": [network.kept, network.a(rows(2, 4))]}
        twin = private_copy(network)
        assert torch.equal(twin.kept, network.kept)
        assert twin.kept is not network.kept
        assert twin.inner.maps["all"][0] is twin.kept
        assert twin.inner.maps["all"][1].grad_fn is None
        assert network.kept.grad_fn is not None

    def test_what_contains_itself(self):
        network = Run(nn.Identity())
        network.kept = {"feature": network(rows(2, 4)), "kind": Kept}
        network.kept["again"] = [network.kept, Kept(network.kept)]
        twin = private_copy(network)
        assert twin.kept["again"][0] is twin.kept
        assert twin.kept["feature"].grad_fn is None

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_16_bits_become_32(self, dtype):
        network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(dtype)
        twin = private_copy(network)
        assert {t.dtype for t in twin.state_dict().values()} == {torch.float32, torch.int64}
        assert network[0].weight.dtype == dtype
        assert torch.equal(twin[0].weight, network[0].weight.float())

    def test_mixed_dtypes_stay(self):
        network = nn.Sequential(nn.Linear(4, 3).half(), nn.Linear(3, 3))
        assert private_copy(network)[0].weight.dtype == torch.float16


def test_16_bit_networks_learn():
    X, y = load_iris(return_X_y=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    scores = [
        FeatureBackpropClassifier(net, random_state=0).fit(X, y).score(X, y)
        for net in (network.half(), copy.deepcopy(network).float())  # rounded weights
    ]
    assert scores[0] == scores[1] > 0.9


def test_estimators_probe_before_anything_else():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        FeatureBackpropClassifier(Run(lambda o: o - o.mean(0))).fit(X.astype(np.float32), y)
