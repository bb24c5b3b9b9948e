"""What is explained of networks that end in a softmax or sigmoid, by finite differences."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection import RelativeSectionalPropagation, attribute
from featprop_sklearn.inspection.relevance.heads import Heads
from tests.inspection.relevance_networks import IMAGE

STEP = 1e-5


def steep():
    """Give logits so large that a softmax of them is nearly flat."""
    torch.manual_seed(0)
    body = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 3),
    )
    body[-1].weight.data *= 20
    return body.double().eval()


class Ends(nn.Module):
    """Logits, and what is made of them."""

    def __init__(self, body, end):
        super().__init__()
        self.body, self.end = body, end

    def forward(self, x):
        return self.end(self.body(x))


def differences(function, x, target):
    """Central differences of one output a sample."""
    found = torch.zeros_like(x)
    for pixel in range(x[0].numel()):
        step = torch.zeros_like(x)
        step.flatten(1)[:, pixel] = STEP
        with torch.no_grad():
            change = function(x + step).reshape(len(x), -1) - function(x - step).reshape(len(x), -1)
        found.flatten(1)[:, pixel] = change[:, target] / (2 * STEP)
    return found.numpy()


def auxiliary(z):
    p = torch.softmax(z, 1)
    torch.softmax(2 * z.roll(1, 1), 1)
    return p


def overwritten(z):
    p = torch.softmax(z, 1).clone()
    p[:, 0] = 0
    return p


def unsqueezed_in_place(z):
    return torch.softmax(z, 1).unsqueeze_(1).squeeze_(1)


FOLLOWED = {
    "sigmoid": torch.sigmoid,
    "sigmoid in place": lambda z: z.clone().sigmoid_(),
    "log-sigmoid": F.logsigmoid,
    "log-sigmoid layer": nn.LogSigmoid(),
    "expit": torch.special.expit,
    "softmax of torch.special": lambda z: torch.special.softmax(z, 1),
    "named argument": lambda z: torch.softmax(dim=1, input=z),
    "squeeze": lambda z: torch.sigmoid(z).unsqueeze(2).squeeze(2),
    "in place": unsqueezed_in_place,
    "reshape": lambda z: z.softmax(1).reshape(-1, 3, 1),
    "view": lambda z: z[:, None].softmax(2).view(len(z), 3),
    "flatten": lambda z: z[..., None].softmax(1).flatten(1),
    "transpose": lambda z: z.T.softmax(0).transpose(0, 1),
    "clamp": lambda z: F.softmax(z, 1).clamp(1e-7, 1),
    "clamp in place": lambda z: F.softmax(z, 1).clamp_(1e-7, 1),
    "log": lambda z: torch.log(z.softmax(1)),
    "log of a sum": lambda z: torch.log(1e-12 + z.softmax(1) + 1e-12),
    "exp": lambda z: z.log_softmax(1).exp(),
    "logit": lambda z: torch.sigmoid(z).logit(1e-9),
    "dtype": lambda z: z.float().softmax(1).double(),
    "samples": lambda z: torch.cat([z, z]).softmax(1)[: len(z)],
    "auxiliary": auxiliary,
    "dict": lambda z: {"other": torch.softmax(-z, 1), "logits": z.softmax(1)},
}
OWN_VALUES = {
    "complement": lambda z: 1 - torch.sigmoid(z),
    "product": lambda z: torch.sigmoid(z) * torch.sigmoid(z.roll(1, 1)),
    "weighted": lambda z: -3 * torch.sigmoid(z),
    "sum of two": lambda z: z.softmax(1) + (2 * z).softmax(1),
    "mean of two": lambda z: torch.stack([z.softmax(1), (2 * z).softmax(1)]).mean(0),
    "some classes": lambda z: z.softmax(1)[:, 1:],
    "overwritten": overwritten,
    "bounds that depend": lambda z: z.softmax(1).clamp(min=z.sigmoid() / 2),
    "logits": lambda z: z,
    "square": lambda z: (0.1 * z) ** 2,
}


@pytest.fixture
def images():
    return torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("end", FOLLOWED.values(), ids=FOLLOWED)
@pytest.mark.parametrize("method", ["gradient", "own"])
def test_what_went_into_a_head_is_explained(images, end, method):
    if method == "gradient":
        pytest.importorskip("captum")
    body = steep()
    found = attribute(Ends(body, end), images, gradient if method == "own" else method, target=1)
    expected = differences(body, images, 1)[:, 0]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.maps, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("end", OWN_VALUES.values(), ids=OWN_VALUES)
def test_anything_else_is_explained_as_it_is(images, end):
    network = Ends(steep(), end)
    found = attribute(network, images, gradient, target=1)
    expected = differences(network, images, 1)[:, 0]
    np.testing.assert_allclose(found.maps, expected, atol=1e-5 * max(1e-3, np.abs(expected).max()))


def gradient(model, x, target):
    x = x.requires_grad_()
    chosen = model(x).gather(1, target[:, None]).sum()
    return torch.autograd.grad(chosen, x)[0]


@pytest.mark.parametrize("end", FOLLOWED.values(), ids=FOLLOWED)
def test_relevance_starts_from_what_went_into_a_head(images, end):
    body = steep()
    found = RelativeSectionalPropagation(Ends(body, end), "body.1").attribute(images, 1, [2])
    expected = RelativeSectionalPropagation(body, "1").attribute(images, 1, [2])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_one_column_of_a_sigmoid(images):
    body = steep()
    found = attribute(Ends(body, lambda z: z.sigmoid()[:, 1]), images, gradient)
    expected = differences(body, images, 1)[:, 0]
    np.testing.assert_allclose(found.maps, expected, atol=1e-5 * np.abs(expected).max())


def test_networks_that_refuse_a_single_sample(images):
    class Pairs(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            if len(x) == 1:
                raise ValueError("at least two")
            return self.body(x).softmax(1)

    body = steep()
    found = attribute(Pairs(body), images[:1], gradient, target=1)
    expected = differences(body, images[:1], 1)[:, 0]
    np.testing.assert_allclose(found.maps, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (torch.sigmoid, True),
        (lambda z: z.sigmoid().clamp(1e-7, 1).squeeze(), True),
        (lambda z: z.softmax(1), False),
        (lambda z: 1 - z.sigmoid(), False),
        (lambda z: z, False),
    ],
)
def test_decisions_of_their_own(end, expected):
    with Heads() as heads:
        assert heads.per_logit(end(torch.randn(4, 3))) is expected


def test_nothing_is_kept_of_what_is_gone():
    with Heads() as heads:
        for _ in range(3):
            torch.randn(4, 3).softmax(1)
        kept = torch.randn(4, 3).softmax(1)
    assert len(heads._traced) == 1
    assert heads.logits(kept) is not kept
