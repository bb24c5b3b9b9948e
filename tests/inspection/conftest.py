"""A network and images that most tests of attribution are about."""

import pytest
import torch

from tests.inspection.relevance_networks import IMAGE, settled, vgg


@pytest.fixture
def network():
    return settled(vgg())


@pytest.fixture
def images():
    return torch.randn(5, *IMAGE)
