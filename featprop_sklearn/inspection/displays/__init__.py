"""Pictures of feature targets; matplotlib is imported when something is drawn."""

from featprop_sklearn.inspection.displays.attribution_display import AttributionDisplay
from featprop_sklearn.inspection.displays.feature_gap_display import FeatureGapDisplay
from featprop_sklearn.inspection.displays.feature_target_display import FeatureTargetDisplay

__all__ = ["AttributionDisplay", "FeatureGapDisplay", "FeatureTargetDisplay"]
