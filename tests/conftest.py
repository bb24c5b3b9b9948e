"""One setting for every test: one thread, a fixed seed, derandomised hypothesis."""

import os
from contextlib import suppress
from subprocess import CalledProcessError

# SciPy reads it once, on its first import; without it some of scikit-learn's checks skip.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# pictures without a screen
os.environ.setdefault("MPLBACKEND", "agg")
# on a GPU, float32 is not to be computed in 19 bits: it is compared with the processor's
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

import hypothesis
import pytest
import torch

from tests.accelerator import device as emulated

torch.set_num_threads(1)

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _same_torch_seed_for_every_test():
    torch.manual_seed(0)


def pytest_sessionstart():
    """Make the emulated accelerator known: torch's autograd looks for devices only once."""
    if not (torch.cuda.is_available() or emulated.why_not()):
        with suppress(CalledProcessError):  # the tests that need it will say so
            emulated.register()


@pytest.fixture(scope="session")
def emulated_accelerator():
    """Built and made known to torch; what fails to build fails once."""
    if reason := emulated.why_not():
        pytest.skip(reason)
    return emulated.register()


@pytest.fixture
def accelerator(request):
    """A device that is not the CPU: the GPU where there is one, else one that is emulated."""
    if torch.cuda.is_available():
        yield "cuda"
        return
    request.getfixturevalue("emulated_accelerator")
    with emulated.present() as name:
        torch.manual_seed(0)  # the first to ask has it registered, and not yet seeded
        yield name


@pytest.fixture
def without_double(accelerator):
    """An accelerator that has no float64, as Apple's mps."""
    if accelerator != emulated.NAME:
        pytest.skip("this accelerator has float64")
    with emulated.without_double():
        yield accelerator
