"""Looking at a network through its feature targets."""

from featprop_sklearn.inspection.attribute import attribute
from featprop_sklearn.inspection.attribution_result import AttributionResult
from featprop_sklearn.inspection.displacement import attribute_displacement
from featprop_sklearn.inspection.displays import (
    AttributionDisplay,
    FeatureGapDisplay,
    FeatureTargetDisplay,
)
from featprop_sklearn.inspection.feature_gap import feature_gap
from featprop_sklearn.inspection.metrics import (
    average_drop,
    average_gain,
    average_increase,
    best_threshold,
    class_mean,
    curve_area,
    deletion_curve,
    insertion_curve,
    make_attribution_report,
    map_similarity,
    masked_scores,
    mass_inside,
    mean_iou,
    outside_inside_ratio,
    pointing_game,
)
from featprop_sklearn.inspection.relevance import (
    RelativeSectionalPropagation,
    register_relevance_rule,
)
from featprop_sklearn.inspection.sanity import (
    cascading_randomisation,
    data_randomisation,
    independent_randomisation,
)
from featprop_sklearn.inspection.scenes import box_masks, make_digit_scenes
from featprop_sklearn.inspection.split_points import describe, split_points

__all__ = [
    "AttributionDisplay",
    "AttributionResult",
    "FeatureGapDisplay",
    "FeatureTargetDisplay",
    "RelativeSectionalPropagation",
    "attribute",
    "attribute_displacement",
    "average_drop",
    "average_gain",
    "average_increase",
    "best_threshold",
    "box_masks",
    "cascading_randomisation",
    "class_mean",
    "curve_area",
    "data_randomisation",
    "deletion_curve",
    "describe",
    "feature_gap",
    "independent_randomisation",
    "insertion_curve",
    "make_attribution_report",
    "make_digit_scenes",
    "map_similarity",
    "masked_scores",
    "mass_inside",
    "mean_iou",
    "outside_inside_ratio",
    "pointing_game",
    "register_relevance_rule",
    "split_points",
]
