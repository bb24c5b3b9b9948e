"""From the wanted output to feature targets, and how well a target was met."""

from featprop_sklearn.propagation.layerwise import LayerwiseRule
from featprop_sklearn.propagation.propagate import PROPAGATIONS, Propagated, make_rule, propagate
from featprop_sklearn.propagation.quality import TargetQuality, measure_targets

__all__ = [
    "PROPAGATIONS",
    "LayerwiseRule",
    "Propagated",
    "TargetQuality",
    "make_rule",
    "measure_targets",
    "propagate",
]
