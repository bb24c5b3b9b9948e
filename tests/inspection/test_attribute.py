"""One door for attribution methods: promises that all keep, estimators, results."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, FeatureBackpropRegressor
from featprop_sklearn.inspection import RelativeSectionalPropagation, attribute
from featprop_sklearn.inspection.attribute import METHODS
from tests.inspection.relevance_networks import IMAGE, left_alone, vgg

#: those that explain a logit of any network; displacements have tests of their own
OF_LOGITS = [name for name in METHODS if name != "displacement"]
CAPTUM = [name for name in OF_LOGITS if name != "rsp"]
pytest.importorskip("captum")


# every method -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OF_LOGITS)
def test_maps_have_the_size_of_the_images(network, images, method):
    found = attribute(network, images, method, target=[0, 1, 2, 3, 4])
    assert found.maps.shape == (5, *IMAGE[1:])
    assert found.maps.dtype == np.float64
    assert found.residual.shape == (5,)
    assert np.isnan(found.residual).all() == (method not in ("rsp", "integrated_gradients", "lrp"))
    assert found.target.tolist() == [0, 1, 2, 3, 4]
    assert found.method == method
    assert (found.inputs == images.numpy()).all()


@pytest.mark.parametrize("method", OF_LOGITS)
def test_batches_do_not_matter(network, images, method):
    images = images.double()
    whole = attribute(network.double(), images, method, batch_size=5)
    parts = attribute(network, images, method, batch_size=2)
    np.testing.assert_allclose(parts.maps, whole.maps, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(parts.residual, whole.residual, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", OF_LOGITS)
def test_runs_are_repeatable(network, images, method):
    one, same = (attribute(network, images, method) for _ in range(2))
    np.testing.assert_array_equal(one.maps, same.maps)
    np.testing.assert_array_equal(one.residual, same.residual)


@pytest.mark.parametrize("method", OF_LOGITS)
def test_the_target_decides(network, images, method):
    one, other = (attribute(network, images, method, target=t).maps for t in (1, 2))
    assert not np.allclose(one, other)
    predicted = network(images).argmax(1)
    by_default = attribute(network, images, method)
    assert by_default.target.tolist() == predicted.tolist()
    found = attribute(network, images, method, target=predicted)
    np.testing.assert_array_equal(by_default.maps, found.maps)


@pytest.mark.parametrize("method", OF_LOGITS)
def test_constant_networks_have_no_attribution(network, images, method):
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)
    np.testing.assert_allclose(attribute(network, images, method).maps, 0, atol=1e-12)


@pytest.mark.parametrize("method", [name for name in OF_LOGITS if name != "lrp"])
@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Sigmoid()])
def test_logits_are_explained(network, images, method, last):
    found = attribute(nn.Sequential(*network, last), images, method, target=1)
    expected = attribute(network, images, method, target=1)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", OF_LOGITS)
def test_the_network_is_left_alone(images, method, fails):
    network = vgg().train()
    network[0].weight.requires_grad_(False)
    network[7].weight.grad = torch.ones_like(network[7].weight)
    network[3].register_forward_hook(lambda *_: None)
    x, random = images.clone().requires_grad_(), torch.get_rng_state()

    def failing(module, args, output):
        if output.requires_grad or method == "occlusion":
            raise RuntimeError("in the middle of a run")

    handle = network[7].register_forward_hook(failing) if fails else None
    error = pytest.raises((RuntimeError, ValueError), match="middle") if fails else nullcontext()
    with left_alone(network), error:
        attribute(network, x, method)
    if handle is not None:
        handle.remove()
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("method", OF_LOGITS)
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_it(network, images, method, around):
    expected = attribute(network, images, method).maps
    with around():
        np.testing.assert_array_equal(attribute(network, images.clone(), method).maps, expected)


# single methods -----------------------------------------------------------------------------


def test_gradient_is_that_of_autograd(network, images):
    x = images.clone().requires_grad_()
    network(x)[:, 3].sum().backward()
    found = attribute(network, images, "gradient", target=3)
    np.testing.assert_allclose(found.maps, x.grad[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((2, 12), (nn.Conv1d, nn.AdaptiveAvgPool1d)),
        ((1, 4, 6, 6), (nn.Conv3d, nn.AdaptiveAvgPool3d)),
    ],
)
@pytest.mark.parametrize("method", OF_LOGITS)
def test_series_and_volumes(shape, layers, method):
    conv, pool = layers
    network = nn.Sequential(
        *(conv(shape[0], 4, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3))
    )
    network[-1].weight.data.abs_()  # features speak for every class
    found = attribute(network, torch.rand(2, *shape), method)
    assert found.maps.shape == (2, *shape[1:])
    assert found.maps.any()


def test_rsp_is_that_of_its_class(network, images):
    rsp = RelativeSectionalPropagation(network, "4", purge="sign", bounds=(-5, 5))
    expected = rsp.attribute(images.double(), 1, [2, 5]).sum(1)
    found = attribute(
        *(network, images), target=1, hostile=[2, 5], layer="4", purge="sign", bounds=(-5, 5)
    )
    np.testing.assert_allclose(found.maps, expected, atol=1e-12)
    np.testing.assert_allclose(found.residual, 1 - expected.sum((1, 2)), atol=1e-9)
    assert np.isnan(attribute(network, images, hostile=None).residual).all()


def test_a_method_of_ones_own(network, images):
    def against(model, x, target, *, hostile, sign=1.0):
        assert hostile.sum(1).tolist() == [1] * len(x)
        return sign * x * model(x).gather(1, target[:, None])[..., None, None]

    found = attribute(network, images, against, target=1, sign=-1.0, batch_size=2)
    expected = -images * network(images)[:, 1, None, None, None]
    np.testing.assert_allclose(found.maps, expected.detach()[:, 0], rtol=1e-5)
    assert found.method == "against"
    rows = attribute(network, images, lambda model, x, target: x[:, 0].numpy())
    np.testing.assert_array_equal(rows.maps, images[:, 0])


# estimators ---------------------------------------------------------------------------------


def small():
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def test_classifiers_take_labels():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 16)).astype("float32"), np.repeat(["a", "b", "c", "c"], 10)
    classifier = FeatureBackpropClassifier(small(), classes=["c", "a", "b"], random_state=0).fit(
        X, y
    )
    found = attribute(classifier, X, "gradient", target=y)
    assert found.maps.shape == (40, 16)
    assert (found.target == y).all()
    index = [["c", "a", "b"].index(label) for label in y]
    expected = attribute(classifier.network_, X, "gradient", target=index)
    np.testing.assert_array_equal(found.maps, expected.maps)
    one = attribute(classifier, X, "gradient", target="b")
    np.testing.assert_array_equal(
        one.maps, attribute(classifier.network_, X, "gradient", target=2).maps
    )
    predicted = attribute(classifier, X, "gradient")
    assert (predicted.target == classifier.predict(X)).all()
    with pytest.raises(ValueError, match=r"'d' is no class of this .* are 'c', 'a', 'b'"):
        attribute(classifier, X, "gradient", target="d")


@pytest.mark.parametrize("rivals", ["one", "each", "ragged", "mask", "present"])
def test_hostile_classes_are_labels_too(rivals):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 1, 8, 8)).astype("float32"), np.tile([3, 5, 7], 4)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 3)
    )
    classifier = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    mask = np.tile([False, False, True], (12, 1))
    hostile, index = {
        "one": ([7], [2]),
        "each": ([[7]] * 12, [[2]] * 12),
        "ragged": ([[7], [5, 7]] * 6, [[2], [1, 2]] * 6),
        "mask": (mask, mask),
        "present": ("present", "present"),
    }[rivals]
    found = attribute(classifier, X, target=3, hostile=hostile)
    expected = attribute(classifier.network_, X, target=0, hostile=index)
    np.testing.assert_array_equal(found.maps, expected.maps)


def test_regressors_take_numbers_of_outputs():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 2))
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    regressor = FeatureBackpropRegressor(network, random_state=0).fit(X, y)
    found = attribute(regressor, X, "integrated_gradients", target=1)
    assert found.maps.shape == (30, 5)
    assert (found.target == 1).all()


def test_fitted_skorch_net(images):
    net = NeuralNetClassifier(vgg()).initialize()
    found = attribute(net, images, "gradient").maps
    np.testing.assert_array_equal(found, attribute(net.module_, images, "gradient").maps)


def test_integers_and_several_inputs_are_refused():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 2)

        def forward(self, a, b):
            return self.last(a + b)

    rng = np.random.default_rng(0)
    X = {"a": rng.normal(size=(20, 3)), "b": rng.normal(size=(20, 3))}
    classifier = FeatureBackpropClassifier(Sum(), random_state=0)
    classifier.fit(X, np.tile([0, 1], 10))
    text = r"needs a network of one floating-point input; that of this FeatureBackpropClassifier"
    with pytest.raises(ValueError, match=text):
        attribute(classifier, X)


# results ------------------------------------------------------------------------------------


def test_numbers_as_a_table(network, images):
    found = attribute(network, images, target=1, hostile=[2])
    table = found.to_frame()
    np.testing.assert_allclose(table.positive + table.negative, 1 - found.residual)
    assert list(table.columns) == ["target", "residual", "positive", "negative", "peak"]
    assert all(one[place] == one.max() for one, place in zip(found.maps, table.peak, strict=True))


# errors -------------------------------------------------------------------------------------


def own(model, x, target):
    return x


def test_unknown_methods_and_options(network, images):
    with pytest.raises(ValueError, match=r"one of 'rsp', .* got 'gradcam'. Did you mean 'grad_cam"):
        attribute(network, images, "gradcam")
    with pytest.raises(ValueError, match=r"'grad_cam' has no option 'hostile'; .* are: layer"):
        attribute(network, images, "grad_cam", hostile=[1])
    with pytest.raises(ValueError, match=r"method=own has no option 'n'; its options are: none"):
        attribute(network, images, own, n=1)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got 0"):
        attribute(network, images, batch_size=0)
    with pytest.raises(ValueError, match=r"Did you mean '8'|Paths: "):
        attribute(network, images, "grad_cam", layer="88")


@pytest.mark.parametrize("X", [torch.empty(0, *IMAGE), torch.full((1, *IMAGE), torch.nan), [1.0]])
def test_what_is_no_sample(network, X):
    with pytest.raises(
        ValueError, match=r"X must hold at least one sample, .* finite numbers; got"
    ):
        attribute(network, X, "gradient")


def test_hostile_classes_that_may_mean_one_a_sample(network, images):
    target, hostile = [0, 1, 2, 3, 4], np.array([5, 6, 7, 8, 9])
    text = "may be one class for each of the 5 samples, as target is, or a list of classes"
    with pytest.raises(ValueError, match=text):
        attribute(network, images, target=target, hostile=hostile)
    with pytest.raises(ValueError, match=text):
        RelativeSectionalPropagation(network).attribute(images, target, hostile)
    found = attribute(network, images, target=target, hostile=hostile[:, None]).maps
    alone = attribute(network, images[3:4], target=3, hostile=[8]).maps
    np.testing.assert_allclose(found[3:4], alone, rtol=1e-6, atol=1e-9)


def test_maps_of_another_shape(network, images):
    text = r"must return maps of shape \(5, 8, 8\) or \(5, 1, 8, 8\) .* got \(5, 10\)"
    with pytest.raises(ValueError, match=text):
        attribute(network, images, lambda model, x, target: model(x))


@pytest.mark.parametrize("method", CAPTUM)
def test_without_captum(network, images, method, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"captum's, .* pip install 'featprop_sklearn\[attribut"):
        attribute(network, images, method)
    assert attribute(network, images).maps.any()
