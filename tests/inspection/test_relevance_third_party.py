"""Relative Sectional Propagation through networks of other packages, as they are."""

import pytest
import torch

from featprop_sklearn.inspection.relevance import RelativeSectionalPropagation
from tests.inspection.relevance_networks import left_alone, lost_relevance, settled
from tests.networks.zoo import monai_resnet, transformers_resnet

IMAGE, VOLUME = (3, 32, 32), (1, 12, 12, 12)


def transformers_bottlenecks(transformers):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=10
    )
    return transformers.ResNetForImageClassification(config)


def transformers_mobile_net(transformers):
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=10)
    return transformers.MobileNetV2ForImageClassification(config)


def transformers_regnet(transformers):
    config = transformers.RegNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        groups_width=4,
        layer_type="x",
        num_labels=10,
    )
    return transformers.RegNetForImageClassification(config)


def monai_dense_net(monai):
    from monai.networks.nets import DenseNet

    return DenseNet(3, 1, 10, init_features=8, growth_rate=4, block_config=(2, 2))


NETWORKS = [
    pytest.param("transformers", lambda _: transformers_resnet(), (1, 8, 8), id="ResNet"),
    pytest.param("transformers", transformers_bottlenecks, IMAGE, id="bottlenecks"),
    pytest.param("transformers", transformers_mobile_net, IMAGE, id="MobileNet-V2"),
    pytest.param("transformers", transformers_regnet, IMAGE, id="RegNet"),
    pytest.param("monai", lambda _: monai_resnet(), VOLUME, id="3-D ResNet"),
    pytest.param("monai", monai_dense_net, (1, 16, 16, 16), id="3-D DenseNet"),
]


@pytest.mark.parametrize(("package", "build", "shape"), NETWORKS)
def test_networks_of_other_packages(package, build, shape):
    network = settled(build(pytest.importorskip(package))).train()
    x, targets, hostile = torch.rand(3, *shape).double(), [4, 0, 9], [[1, 2], [3, 3], [0, 5]]
    rsp = RelativeSectionalPropagation(network)
    with left_alone(network), lost_relevance() as lost:
        found = rsp.attribute(x, targets, hostile)
    assert found.sum().item() == pytest.approx(3 - sum(lost), abs=1e-5)
    for row, (target, rivals) in enumerate(zip(targets, hostile, strict=True)):
        alone = rsp.attribute(x[row : row + 1], target, rivals)
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-7, atol=1e-9)
    failing = RelativeSectionalPropagation(network, bounds=(0.0, 0.1))
    with left_alone(network), pytest.raises(ValueError, match=r"bounds=.* must hold all inputs"):
        failing.attribute(x)
