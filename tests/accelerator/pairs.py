"""The same network fitted on the processor and on an accelerator."""

import numpy as np
import torch
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer

#: by which results may differ, relative to their size
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
AS_IT_IS = GradientTrainer(max_epochs=0)


def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


def rows(dtype=torch.float64):
    random = np.random.default_rng(0)
    X = random.uniform(size=(30, 1, 8, 8)).astype(str(dtype).removeprefix("torch."))
    return X, np.arange(30) % 10


def on_both(accelerator, make, X, y, *, kind=FeatureBackpropClassifier, **parameters):
    """Fit on either device; the networks of equal weights."""
    for device in ("cpu", accelerator):
        torch.manual_seed(0)
        estimator = kind(make(), device=device, random_state=0, **parameters).fit(X, y)
        assert place(estimator) == device
        yield estimator


def place(estimator):
    """Return the kind of device that a fitted network lies on."""
    (found,) = {parameter.device.type for parameter in estimator.module_.parameters()}
    return found


def assert_near(found, expected, dtype):
    """Compare arrays, to the tolerance of the dtype relative to the largest entry."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCES[dtype])
