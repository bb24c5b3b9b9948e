"""Guided gradients, however ReLUs are written: worked figures, module hooks, captum."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.networks.guided import VisibleInPlace, guided, relu_nodes


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def both_gradients(total, output, x):
    (ordinary,) = torch.autograd.grad(total, x, retain_graph=True)
    with guided(relu_nodes(output)):
        (positive,) = torch.autograd.grad(total, x, retain_graph=True)
    (again,) = torch.autograd.grad(total, x)
    assert torch.equal(again, ordinary)  # nothing stays behind
    return ordinary, positive


WAYS_TO_WRITE_RELU = [
    *(torch.relu, F.relu, torch.Tensor.relu, nn.ReLU(), nn.ReLU6(), F.relu6, nn.Hardtanh(0, 6)),
    *(nn.ReLU(inplace=True), nn.ReLU6(inplace=True), torch.relu_, torch.Tensor.relu_),
    lambda u: F.hardtanh(u, 0, 6, inplace=True),
    lambda u: F.hardtanh_(u, 0, 6),
    lambda u: u.clamp(min=0),
    lambda u: u.clamp_min(0.0),
    lambda u: u.clamp(0, 6),
    lambda u: u.clip_(0, 6),
    nn.Threshold(0, 0),
    lambda u: F.threshold_(u, 0, 0),
]


@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("relu", WAYS_TO_WRITE_RELU)
def test_every_way_to_write_a_relu_is_guided(relu, is_view):
    w1 = tensor([1, -1], [1, 1], [2, 0.5])
    w2 = tensor([1, -1, 0.5], [-1, 2, -0.5])

    def net(x):
        u = x.clone() @ w1.T
        h = relu(u.view(1, 3) if is_view else u)
        v = h @ w2.T
        return relu(v.view(1, 2) if is_view else v)

    x = tensor([1, 2]).requires_grad_()
    with VisibleInPlace():
        output = net(x)
    ordinary, positive = both_gradients(output.sum(), output, x)
    assert ordinary.tolist() == [[1, 1.75]]
    assert positive.tolist() == [[2, 2]]


class InvertedResidual(nn.Module):
    """The block of MobileNet-V2."""

    def __init__(self, relu):
        super().__init__()
        self.main = nn.Sequential(
            *(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), relu()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), relu()),
            *(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
        )

    def forward(self, x):
        return x + self.main(x)


def mobile_net(relu):
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), relu()),
        *(InvertedResidual(relu), InvertedResidual(relu)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    ).double()


@pytest.mark.parametrize(
    ("relu", "inplace"), [(nn.ReLU, False), (nn.ReLU6, False), (nn.ReLU, True), (nn.ReLU6, True)]
)
def test_both_gradients_are_those_of_torch_with_module_hooks(relu, inplace):
    torch.manual_seed(0)
    net = mobile_net(lambda: relu(inplace=inplace))
    images, y = torch.randn(5, 1, 9, 9, dtype=torch.float64) * 3, torch.tensor([0, 1, 2, 0, 1])

    def losses(output):
        return F.cross_entropy(output, y, reduction="none")

    def gradient():
        x = images.clone().requires_grad_()
        return torch.autograd.grad(losses(net(x)).sum(), x)[0]

    x = images.clone().requires_grad_()
    output = net(x)
    ordinary, positive = both_gradients(losses(output).sum(), output, x)
    for layer in net.modules():
        if isinstance(layer, relu):
            layer.inplace = False  # module hooks cannot see what is overwritten
    torch.testing.assert_close(ordinary, gradient(), rtol=1e-10, atol=1e-12)
    for layer in net.modules():
        if isinstance(layer, relu):
            layer.register_full_backward_hook(lambda _, grads, __: (grads[0].clamp(min=0),))
    torch.testing.assert_close(positive, gradient(), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(ordinary, positive, rtol=0.1)


def test_guided_gradients_are_captums():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(1)
    net = mobile_net(nn.ReLU).eval()
    images = torch.randn(4, 1, 9, 9, dtype=torch.float64)
    x = images.clone().requires_grad_()
    output = net(x)
    _, positive = both_gradients(output[:, 1].sum(), output, x)
    with pytest.warns(UserWarning, match="Setting backward hooks on ReLU"):
        theirs = captum.GuidedBackprop(net).attribute(images.requires_grad_(), 1)
    torch.testing.assert_close(positive, theirs.detach(), rtol=1e-10, atol=1e-12)


def test_what_is_flat_below_another_value_is_no_relu():
    x = torch.randn(3, 4, requires_grad=True)
    others = (
        *(nn.Hardtanh(), nn.GELU(), nn.LeakyReLU(), nn.Threshold(0.1, 0), nn.ELU()),
        *(lambda u: u.clamp(max=0), lambda u: u.clamp(0.5, 2), torch.tanh),
    )
    for other in others:
        assert not relu_nodes(other(x))
    assert not relu_nodes(x.detach())


def test_relus_inside_recurrent_layers_and_attention_are_found():
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert len(relu_nodes(nn.RNN(4, 5, nonlinearity="relu", batch_first=True)(x)[0])) == 3
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert len(relu_nodes(layer(x))) == 1


def test_views_overwritten_by_a_copy_keep_values_gradients_and_aliases():
    def run(x):
        u = x * 2
        u[:, :2].clamp_(min=0)
        v = u.view(-1)
        assert F.relu(v[:3], inplace=True)._base is not None
        return u

    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    plain = run(x)
    with VisibleInPlace():
        visible = run(x)
    assert torch.equal(plain, visible)
    assert len(relu_nodes(visible)) == 2
    gradients = [torch.autograd.grad(u.sin().sum(), x)[0] for u in (plain, visible)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
