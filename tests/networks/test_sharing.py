"""Clones that share the network."""

import torch
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import Ridge

from featprop_sklearn.networks import SharedParameters


class Estimator(SharedParameters, BaseEstimator):
    _shared = ("module",)

    def __init__(self, module=None, inner=None, options=None):
        self.module = module
        self.inner = inner
        self.options = options

    def fit(self, X, y=None, sample_weight=None):
        self.fitted_ = True
        return self


def test_clone_shares_the_network_and_clones_the_rest():
    original = Estimator(torch.nn.Linear(2, 2), Ridge(alpha=3.0), [1, 2]).fit(None)
    twin = clone(original)
    assert twin.module is original.module
    assert twin.inner is not original.inner
    assert twin.inner.alpha == 3.0
    assert twin.options == [1, 2]
    assert twin.options is not original.options
    assert not hasattr(twin, "fitted_")


def test_clone_keeps_what_was_configured():
    import sklearn

    with sklearn.config_context(enable_metadata_routing=True):
        original = Estimator().set_fit_request(sample_weight=True)
        twin = clone(original)
        assert twin.get_metadata_routing().fit.requests == {"sample_weight": True}
        twin.set_fit_request(sample_weight=False)
        assert original.get_metadata_routing().fit.requests == {"sample_weight": True}
