"""Affine layers wherever they are: which ones, what they see, and what follows from them."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from featprop_sklearn.networks import affine_sites, build_chain, reasons_against


class Block(nn.Module):
    """A residual block as they are written: in place wherever it can be."""

    def __init__(self, channels):
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)
        self.act1, self.act2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm(self.b(self.act1(self.a(x))))
        out += x
        return self.act2(out)


class OverwritesTheInput(nn.Module):
    """What the layer was given is overwritten once it is read."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        hidden = torch.tanh(x)
        out = self.fc(hidden)
        hidden.zero_()
        return x + out


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.again, self.once = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.again(torch.relu(self.again(x))) + self.once(x)


class TimeFirst(nn.Module):
    """Rows are the steps of sequences, not samples."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(x) + self.fc(x.transpose(0, 1)).transpose(0, 1)


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(x.reshape(-1, 4)).reshape(x.shape)


class OutputSize(nn.Module):
    """The layer alone does not say how its output comes about."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 2, 3, 2)
        self.down = nn.Conv1d(2, 2, 2)

    def forward(self, x):
        size = [2 * x.shape[-1] + 2]
        return torch.cat([self.down(x), self.up(x, output_size=size)], dim=-1)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.named, self.plain = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.named(input=x) + self.plain(x)


class Masked(nn.Linear):
    """A Linear by name alone."""

    def forward(self, x):
        return F.linear(x, self.weight * (self.weight > 0), self.bias)


class SubclassInName(nn.Linear):
    pass


class Functional(nn.Module):
    """The weight is used, the layer never called."""

    def __init__(self):
        super().__init__()
        self.fc, self.called = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.called(x) + F.linear(x, self.fc.weight)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x + self.attend(x, x, x, need_weights=False)[0])


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


def tied_with_an_embedding():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Functional(), nn.Linear(4, 2))
    net[2].fc.weight = nn.Parameter(torch.ones(4, 4))
    net[2].called.weight = net[2].fc.weight
    return net


def frozen():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    net[1].bias.requires_grad_(False)
    return net


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 3))


def encoder_layer():
    return nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
    )


# network, shape of one sample, names of the sites
NETWORKS = {
    "one layer": (lambda: nn.Linear(4, 3), (4,), ["network"]),
    "every kind of layer": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(1, 2, 2),
            nn.Conv2d(2, 3, 2, bias=False),
            nn.ReLU(inplace=True),
            nn.Flatten(2),
            nn.ConvTranspose1d(3, 2, 2),
            nn.Conv1d(2, 2, 2),
            nn.Unflatten(2, (1, 3, 3)),
            nn.Conv3d(2, 2, 1),
            nn.ConvTranspose3d(2, 1, 1),
            nn.Flatten(),
            nn.Linear(9, 2),
        ),
        (1, 3, 3),
        ["0", "1", "4", "5", "7", "8", "10"],
    ),
    "residual blocks": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), Block(2), Block(2), nn.Flatten()),
        (1, 4, 4),
        ["0", "1.a", "1.b", "2.a", "2.b"],
    ),
    "input overwritten": (
        lambda: nn.Sequential(OverwritesTheInput(), OverwritesTheInput()),
        (4,),
        ["0.fc", "1.fc"],
    ),
    "used twice in a block": (lambda: nn.Sequential(Twice(), nn.Tanh()), (4,), ["0.once"]),
    "used twice in the chain": (shared, (4,), ["3"]),
    "tied": (tied, (4,), ["3"]),
    "tied with something unused": (tied_with_an_embedding, (3,), ["0", "3"]),
    "frozen": (frozen, (4,), ["2"]),
    "reparametrised": (
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        (4,),
        ["1"],
    ),
    "time first, as long as a batch": (TimeFirst, (3, 4), ["out"]),
    "time first, as long as another batch": (TimeFirst, (2, 4), ["out"]),
    "samples and steps merged": (lambda: nn.Sequential(Merged(), nn.Flatten()), (3, 4), []),
    "one step a sample": (lambda: nn.Sequential(Merged(), nn.Flatten()), (1, 4), ["0.fc"]),
    "another output size": (OutputSize, (2, 4), ["down"]),
    "by keyword": (ByKeyword, (4,), ["plain"]),
    "subclass that computes something else": (
        lambda: nn.Sequential(Masked(4, 4), nn.Linear(4, 2)),
        (4,),
        ["1"],
    ),
    "subclass that does not": (lambda: nn.Sequential(SubclassInName(4, 4)), (4,), ["0"]),
    "never called": (Functional, (4,), ["called"]),
    "attention": (lambda: nn.Sequential(Attention(), nn.Flatten()), (3, 4), ["0.fc"]),
    "transformer": (encoder_layer, (3, 4), ["0.linear1", "0.linear2", "2"]),
}


def build(name):
    make, shape, names = NETWORKS[name]
    net = make().double().eval()
    x = torch.randn(5, *shape, dtype=torch.float64)
    return net, build_chain(net, x), x, names


@pytest.mark.parametrize("name", NETWORKS)
def test_which_layers_are_sites(name):
    net, chain, x, names = build(name)
    sites = affine_sites(chain, x)
    assert [site.name for site in sites] == names
    for site in sites:
        path = "" if site.layer is net else site.name
        assert net.get_submodule(path) is site.layer
    assert [site.name for site in affine_sites(chain, x[:1])] == names  # one sample is enough
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tail_of_what_was_read_is_the_network(name):
    net, chain, x, _ = build(name)
    expected = net(x)
    for site in affine_sites(chain, x):
        before = chain[: site.stage](x)
        given, output = site.read(chain, before)
        torch.testing.assert_close(output, site.layer(given))
        tail = site.tail(chain, before)
        torch.testing.assert_close(tail(output, torch.arange(5)), expected)
        rows = torch.tensor([3, 1])
        torch.testing.assert_close(tail(output[rows], rows), expected[rows])
    torch.testing.assert_close(net(x), expected)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"input overwritten"}))
def test_the_tail_answers_for_a_changed_layer_and_has_derivatives(name):
    net, chain, x, _ = build(name)
    for site in affine_sites(chain, x):
        if site.layer.bias is None:
            continue
        before = chain[: site.stage](x).detach()
        output = site.read(chain, before)[1].detach()
        tail, every = site.tail(chain, before), torch.arange(5)
        axis = output.ndim - 1 if isinstance(site.layer, nn.Linear) else 1
        others = [dim for dim in range(output.ndim) if dim != axis]

        point = output.clone().requires_grad_()
        found = torch.autograd.grad(tail(point, every).square().sum(), point)[0]
        wanted = torch.autograd.grad(net(x).square().sum(), site.layer.bias)[0]
        torch.testing.assert_close(found.sum(others), wanted)

        change = torch.randn_like(site.layer.bias)
        moved = tail(output + change.reshape(-1, *[1] * (output.ndim - 1 - axis)), every)
        with torch.no_grad():
            site.layer.bias += change
            torch.testing.assert_close(moved, net(x))
            site.layer.bias -= change


ELSEWHERE = "its weights are used elsewhere, too"
COMPUTED = "its weights are computed from other parameters"
NO_CALL = "its weights are used without a call of it"
NO_ROWS = "it does not take one tensor with one row a sample"
NOT_ONCE = "it does not run just once"


class Phases(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4, dtype=torch.complex128)

    def forward(self, x):
        return self.fc(torch.polar(torch.ones_like(x), x)).abs()


class Complex(nn.Sequential):
    def __init__(self):
        super().__init__(Phases(), nn.Linear(4, 2))

    def double(self):
        return self._apply(lambda t: t if t.is_complex() else t.double())


class OnlyLargeBatches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.large = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if len(x) < 3 else self.large(self.fc(x))


@pytest.mark.parametrize(
    ("make", "shape", "reasons"),
    [
        (NETWORKS["every kind of layer"][0], (1, 3, 3), {}),
        (shared, (4,), {"0": ELSEWHERE, "2": ELSEWHERE}),
        (tied, (4,), {"0": ELSEWHERE, "2": ELSEWHERE}),
        (frozen, (4,), {"1": "it is frozen in part"}),  # the first layer has nothing to train
        (
            lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.LayerNorm(4), nn.Linear(4, 2)),
            (4,),
            {"0": COMPUTED, "1": "LayerNorm is none of torch's affine layers"},
        ),
        (Complex, (4,), {"0.fc": "its weights are complex numbers"}),
        (Twice, (4,), {"again": NOT_ONCE}),
        (OnlyLargeBatches, (4,), {"large": NOT_ONCE}),
        (TimeFirst, (3, 4), {"fc": NO_ROWS}),
        (ByKeyword, (4,), {"named": NO_ROWS}),
        (Functional, (4,), {"fc": NO_CALL}),
        (
            lambda: nn.Sequential(Masked(4, 4)),
            (4,),
            {"0": "Masked is none of torch's affine layers"},
        ),
        (
            Attention,
            (3, 4),
            {
                "attend": "MultiheadAttention is none of torch's affine layers",
                "attend.out_proj": NO_CALL,
            },
        ),
    ],
)
def test_why_other_layers_are_no_sites(make, shape, reasons):
    net = make().double().eval()
    x = torch.randn(5, *shape, dtype=torch.float64)
    chain = build_chain(net, x)
    assert reasons_against(chain, x) == reasons
    assert not set(reasons) & {site.name for site in affine_sites(chain, x)}


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_that_learns_is_a_site_or_has_a_reason(name):
    net, chain, x, _ = build(name)
    modules = net.named_modules(remove_duplicate=False)
    named = {path or "network": module for path, module in modules}
    found = [site.name for site in affine_sites(chain, x)] + list(reasons_against(chain, x))
    known = {id(p) for layer in found for p in named[layer].parameters()}
    assert {id(p) for p in net.parameters() if p.requires_grad} <= known


def test_hooks_are_removed_after_an_error():
    class Broken(Block):
        limit = torch.inf

        def forward(self, x):
            out = super().forward(x)
            if x.sum() > self.limit:  # which cannot be traced
                raise RuntimeError("broken")
            return out

    net = nn.Sequential(nn.Conv2d(1, 2, 3), Broken(2)).double().eval()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    chain = build_chain(net, x)
    site = affine_sites(chain, x)[1]
    before = chain[:1](x)
    output = site.read(chain, before)[1]
    net[1].limit = -torch.inf
    for run in (
        lambda: site.read(chain, before),
        lambda: site.tail(chain, before)(output, torch.arange(3)),
        lambda: affine_sites(chain, x),
    ):
        with pytest.raises(RuntimeError, match="broken"):
            run()
    assert not any(module._forward_hooks for module in net.modules())


def test_threads_do_not_see_each_others_values():
    """Two threads meet inside the layer: each must go on with its own."""
    meeting = threading.Barrier(2, timeout=30)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.wait = nn.Linear(4, 4), False

        def forward(self, x):
            if self.wait:
                meeting.wait()
            out = self.fc(x)
            if self.wait:
                meeting.wait()
            return x + torch.relu(out)

    net = nn.Sequential(Meeting(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 6, 4)
    chain = build_chain(net, x[0])
    site = affine_sites(chain, x[0])[0]
    expected = [site.read(chain, part) for part in x]
    tails = [site.tail(chain, part) for part in x]
    changed = [
        tail(output + shift, torch.arange(6))
        for shift, tail, (_, output) in zip((1.0, 2.0), tails, expected, strict=True)
    ]
    found = {}

    def work(index):
        found[index] = site.read(chain, x[index])
        output = found[index][1] + (1.0, 2.0)[index]
        found[index] = (*found[index], tails[index](output, torch.arange(6)))

    net[0].wait = True
    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert torch.equal(found[index][0], expected[index][0])
        assert torch.equal(found[index][1], expected[index][1])
        assert torch.equal(found[index][2], changed[index])
