"""One setting for every test: one thread, a fixed seed, derandomised hypothesis."""

import os

# SciPy reads it once, on its first import; without it some of scikit-learn's checks skip.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# pictures without a screen
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _same_torch_seed_for_every_test():
    torch.manual_seed(0)
