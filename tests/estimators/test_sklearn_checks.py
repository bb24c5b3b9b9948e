"""scikit-learn's own checks: all that it generates pass, none skips, none is expected to fail."""

import warnings

import pytest
from sklearn.utils.estimator_checks import check_estimator

from featprop_sklearn import FeatureBackpropClassifier, FeatureBackpropRegressor, LayerInverter


@pytest.mark.parametrize(
    ("estimator", "at_least"),
    [
        (LayerInverter(), 45),
        (FeatureBackpropClassifier(), 62),
        (FeatureBackpropRegressor(), 55),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_every_check_passes(estimator, at_least):
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # checks warn on purpose, and look at the warnings
        results = check_estimator(estimator, on_skip=None, on_fail=None)
    not_passed = {
        result["check_name"]: (result["status"], result["exception"])
        for result in results
        if result["status"] != "passed"
    }
    assert not not_passed
    assert len(results) >= at_least
