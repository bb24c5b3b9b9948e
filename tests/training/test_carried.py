"""Features carried forward are those of running all stages, and few stages run for them."""

import pytest
import torch
from torch import nn

from featprop_sklearn.training import carried
from featprop_sklearn.training.carried import CarriedFeatures


class Counted(nn.Module):
    """Counts the rows that it has seen."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return 2 * x + 1


@pytest.mark.parametrize("room", [1 << 25, 0])
@pytest.mark.parametrize("batch_size", [3, 10])
def test_features_are_those_of_running_every_stage(monkeypatch, room, batch_size):
    monkeypatch.setattr(carried, "ROOM", room)
    stages, x = [Counted() for _ in range(5)], torch.randn(10, 4)
    features = CarriedFeatures(stages, x, batch_size)
    expected = x
    for stop in range(5):
        features.advance(stop)
        for _ in range(2):  # asking twice changes nothing
            for rows, found in features.before(stop):
                torch.testing.assert_close(found, expected[rows])
        expected = 2 * expected + 1


def test_each_stage_runs_about_once_where_features_are_kept(monkeypatch):
    stages, x = [Counted() for _ in range(20)], torch.randn(10, 4)

    def run():
        for stage in stages:
            stage.rows = 0
        features = CarriedFeatures(stages, x, 10)
        for stop in range(20):
            features.advance(stop)
            list(features.before(stop))
        return max(stage.rows for stage in stages)

    assert run() == 11  # and one row to see how large a feature is
    monkeypatch.setattr(carried, "ROOM", 0)
    assert run() > 150
