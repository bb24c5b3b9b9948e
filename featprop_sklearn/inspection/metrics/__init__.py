"""What attribution maps are worth: where they lie, what they say, and what they depend on."""

from featprop_sklearn.inspection.metrics.faithfulness import (
    average_drop,
    average_gain,
    average_increase,
    curve_area,
    deletion_curve,
    insertion_curve,
    masked_scores,
)
from featprop_sklearn.inspection.metrics.localisation import (
    best_threshold,
    class_mean,
    mass_inside,
    mean_iou,
    outside_inside_ratio,
    pointing_game,
)
from featprop_sklearn.inspection.metrics.report import make_attribution_report
from featprop_sklearn.inspection.metrics.similarity import map_similarity

__all__ = [
    "average_drop",
    "average_gain",
    "average_increase",
    "best_threshold",
    "class_mean",
    "curve_area",
    "deletion_curve",
    "insertion_curve",
    "make_attribution_report",
    "map_similarity",
    "masked_scores",
    "mass_inside",
    "mean_iou",
    "outside_inside_ratio",
    "pointing_game",
]
