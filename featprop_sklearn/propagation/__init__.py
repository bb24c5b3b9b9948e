"""From the wanted output to feature targets, and how well a target was met."""

from featprop_sklearn.propagation.acceptable import Acceptable, Tail, nearest_acceptable
from featprop_sklearn.propagation.cached import cached_propagate
from featprop_sklearn.propagation.joint import JointRule
from featprop_sklearn.propagation.layerwise import LayerwiseRule
from featprop_sklearn.propagation.propagate import PROPAGATIONS, Propagated, make_rule, propagate
from featprop_sklearn.propagation.quality import TargetQuality, measure_targets

__all__ = [
    "PROPAGATIONS",
    "Acceptable",
    "JointRule",
    "LayerwiseRule",
    "Propagated",
    "Tail",
    "TargetQuality",
    "cached_propagate",
    "make_rule",
    "measure_targets",
    "nearest_acceptable",
    "propagate",
]
