"""The emulated accelerator is strict where a GPU is, and computes what the processor does."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.accelerator import device as emulated


@pytest.fixture
def device(accelerator):
    if accelerator != emulated.NAME:
        pytest.skip("there is a GPU")
    return accelerator


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 8), nn.LayerNorm(8), nn.Unflatten(1, (2, 4))),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        *(nn.Flatten(), nn.Linear(8, 3)),
    )


# placement -----------------------------------------------------------------------------------

MIXED = {
    "pointwise": lambda x: x + torch.ones(4),
    "in place on the processor": lambda x: torch.ones(()).add_(x.sum()),
    "product": lambda x: x @ torch.ones(4, 2),
    "linear": lambda x: F.linear(x, torch.ones(2, 4)),
    "convolution": lambda x: F.conv1d(x[None], torch.ones(1, 3, 2)),
    "bias": lambda x: F.conv1d(x[None], x[None, :, :2], torch.ones(1)),
    "concatenation": lambda x: torch.cat([x, torch.ones(1, 4)]),
    "stack": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "selection": lambda x: x.index_select(0, torch.tensor([0])),
    "gathering": lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "assignment": lambda x: x.__setitem__(torch.tensor([0]), torch.ones(4)),
    "mask": lambda x: x.masked_fill(torch.ones(3, 4, dtype=torch.bool), 0.0),
    "choice": lambda x: torch.where(x > 0, x, torch.zeros(3, 4)),
    "loss": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2])),
    "weights": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "result": lambda x: torch.add(x, x, out=torch.empty(3, 4)),
    "distances": lambda x: torch.cdist(x, torch.ones(2, 4)),
    "transform": lambda x: torch.vmap(lambda row: row + torch.ones(4))(x),
    "subscript of the processor's": lambda x: torch.ones(3)[x.argmax(1)],
}


@pytest.mark.parametrize("mixed", MIXED.values(), ids=MIXED)
def test_two_devices_do_not_mix(mixed, device):
    with pytest.raises(RuntimeError, match=r"same device|on the cpu|indices should be"):
        mixed(torch.randn(3, 4, device=device))


def test_numbers_and_subscripts_of_the_processor_do(device):
    x = torch.randn(3, 4)
    there, number, rows = x.to(device), torch.tensor(2.0), torch.tensor([2, 0])
    for found, expected in [
        (there * number, x * number),
        (there.masked_fill(there > 0, number), x.masked_fill(x > 0, number)),
        (there[rows], x[rows]),
        (there[:, torch.tensor([True, False, True, True])], x[:, [0, 2, 3]]),
    ]:
        assert found.device.type == device
        assert torch.equal(found.cpu(), expected)
    there[rows] = number
    assert there[rows].eq(2).all()


def test_memory_is_not_the_processor_s(device):
    x = torch.zeros(3)
    there = x.to(device)
    there += 1
    assert torch.equal(x, torch.zeros(3))
    assert torch.equal(there.cpu(), torch.ones(3))
    with pytest.raises(TypeError, match="can't convert"):
        there.numpy()
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.empty(1, device=f"{device}:1")
    assert there.device == torch.device(device, 0)


def test_views_share_memory_and_results_grow(device):
    x = torch.zeros(2, 3, device=device)
    x.T[1].view(-1).unsqueeze(0).mul_(0).add_(5)
    x.unfold(1, 2, 1)[0, 0, 0] = 7
    assert x.tolist() == [[7, 5, 0], [0, 5, 0]]
    out = torch.empty(0, device=device)
    assert torch.add(x, x, out=out) is out
    assert out.tolist() == [[14, 10, 0], [0, 10, 0]]
    assert x.resize_(3, 3)[:2].flatten().tolist()[:5] == [7, 5, 0, 0, 5]


# numbers -------------------------------------------------------------------------------------


def test_gradients(device):
    here, x = network(), torch.randn(5, 1, 8, 8)
    there = copy.deepcopy(here).to(device)
    labels = torch.tensor([0, 1, 2, 0, 1])
    F.cross_entropy(here(x), labels).backward()
    F.cross_entropy(there(x.to(device)), labels.to(device)).backward()
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), one.grad)


# torch 2.13 warns about itself when the first forward-mode product of a process is taken
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd, torch.func.hessian])
def test_function_transforms(transform, device):
    here, x = network().double().eval()[:6], torch.randn(1, 8, 8, dtype=torch.float64)
    there = copy.deepcopy(here).to(device)

    def outputs(network):
        return lambda x: network(x[None]).square().sum(1)

    expected = transform(outputs(here))(x)
    torch.testing.assert_close(transform(outputs(there))(x.to(device)).cpu(), expected)


@pytest.mark.parametrize(
    "function",
    [
        *(torch.fft.rfft2, torch.linalg.svdvals, torch.linalg.pinv),
        lambda x: torch.fft.fft(x).conj() @ x.T.cfloat(),
    ],
    ids=["fft", "svd", "pinv", "conjugate"],
)
def test_algebra(function, device):
    x = torch.randn(3, 4)
    torch.testing.assert_close(function(x.to(device)).cpu(), function(x))


def test_recurrent_layers(device):
    torch.manual_seed(0)
    here, x = nn.LSTM(3, 4, 2, batch_first=True), torch.randn(2, 5, 3)
    there = copy.deepcopy(here).to(device)
    expected, found = here(x)[0], there(x.to(device))[0]
    torch.testing.assert_close(found.cpu(), expected)
    gradients = [
        torch.autograd.grad(out.square().sum(), list(net.parameters()))
        for out, net in ((expected, here), (found, there))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other.cpu(), one)


def test_sixteen_bit_where_it_is_asked_for(device):
    x, linear = torch.randn(2, 3, device=device), nn.Linear(3, 2, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    assert linear(x).dtype == torch.float32


def test_without_float64(without_double):
    with pytest.raises(TypeError, match="does not support"):
        torch.zeros(2).double().to(without_double)
    x = torch.zeros(2, device=without_double)
    for convert in (torch.Tensor.double, lambda x: x.sum(dtype=torch.float64)):
        with pytest.raises(TypeError, match="does not support"):
            convert(x)


# random numbers ------------------------------------------------------------------------------


def test_a_generator_of_its_own(device):
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        drawn.append(torch.randn(4, device=device))
        F.dropout(drawn[-1])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*drawn)
    assert not torch.equal(torch.randn(4, device=device), drawn[0])
    generator = torch.Generator(device).manual_seed(3)
    assert torch.equal(torch.randn(4, generator=generator, device=device), drawn[0])
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(4, generator=torch.Generator(), device=device)


# files, copies, absence ----------------------------------------------------------------------


def test_pickled(device):
    x = torch.randn(3, 4, device=device)
    twin = pickle.loads(pickle.dumps(x))
    assert twin.device == x.device
    assert torch.equal(twin, x)


def test_it_is_there_for_who_asks_only(accelerator):
    assert torch.accelerator.is_available()
    if accelerator == emulated.NAME:
        emulated.register().present = False
        assert not torch.accelerator.is_available()


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("platform", "win32", "on Linux only"), ("COMPILER", "no-such-compiler", "no C++ compiler")],
)
def test_why_there_is_none(monkeypatch, attribute, value, reason):
    monkeypatch.setattr(sys if attribute == "platform" else emulated, attribute, value)
    assert reason in emulated.why_not()
