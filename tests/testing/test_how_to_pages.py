"""The how-to pages of the documentation run as they stand."""

import doctest
from pathlib import Path

import pytest

from featprop_sklearn.inspection import relevance
from featprop_sklearn.inversion import registry
from featprop_sklearn.least_squares import SOLVERS
from featprop_sklearn.networks import layers

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    "page",
    [
        "add_a_layer.rst",
        "add_a_solver.rst",
        "attribution.rst",
        "displacement.rst",
        "displays.rst",
        "large_data.rst",
        "networks.rst",
        "post_training.rst",
    ],
)
def test_page_runs(page, monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(layers, "_TREATED_AS_LAYERS", set(layers._TREATED_AS_LAYERS))
    monkeypatch.setattr(relevance.registry, "_RULES", dict(relevance.registry._RULES))
    solvers = dict(SOLVERS)
    try:
        ran = doctest.testfile(
            str(DOCS / page), module_relative=False, optionflags=doctest.ELLIPSIS, encoding="utf-8"
        )
    finally:
        SOLVERS.clear()
        SOLVERS.update(solvers)
    assert ran.attempted > 10
    assert ran.failed == 0
