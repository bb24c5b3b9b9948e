"""Scenes of two handwritten digits: relevance lies on the one, and against the other."""

import pytest
import torch
from torch import nn

from featprop_sklearn.inspection import box_masks, make_digit_scenes, pointing_game
from featprop_sklearn.inspection.relevance import (
    RelativeSectionalPropagation,
    pass_through,
    register_relevance_rule,
    registry,
)
from tests.inspection.scene_networks import cnn, resnet, trained


def hits(maps, boxes):
    return pointing_game(maps, boxes).mean()


def gelu_cnn():
    """GELU is to be handed through as ReLU is."""
    register_relevance_rule("gelu", pass_through)
    return nn.Sequential(*(nn.GELU() if isinstance(part, nn.ReLU) else part for part in cnn()))


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


@pytest.mark.parametrize("build", [cnn, resnet, gelu_cnn])
def test_target_and_hostile_digit(build):
    torch.manual_seed(0)
    network = trained(build(), 300)
    scenes = make_digit_scenes(60, subset="test", random_state=0)
    x, labels = torch.tensor(scenes.images), torch.tensor(scenes.labels)
    known = (network(x).topk(2).indices.sort(1).values == labels.sort(1).values).all(1)
    assert known.float().mean() > 0.6  # chance is 1 in 45
    x, (target, hostile) = x[known], labels[known].T
    masks, boxes = scenes.masks[known], box_masks(scenes.boxes, (32, 32))[known]
    rsp = RelativeSectionalPropagation(network)
    found = rsp.attribute(x, target, hostile[:, None])[:, 0].numpy()
    net = (found[:, None] * masks).sum(axis=(2, 3))
    assert (net[:, 0] > 0).mean() > 0.95
    assert (net[:, 1] < 0).mean() > 0.95
    assert hits(found, boxes[:, 0]) > 0.9
    swapped = rsp.attribute(x, hostile, target[:, None])[:, 0].numpy()
    assert hits(swapped, boxes[:, 1]) > 0.9
    # it is what the network has learnt that decides: without its last layer it cannot know
    network[-1].reset_parameters()
    unlearnt = rsp.attribute(x, target, hostile[:, None])[:, 0].numpy()
    assert 0.2 < hits(unlearnt, boxes[:, 0]) < 0.8
