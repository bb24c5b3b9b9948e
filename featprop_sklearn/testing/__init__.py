"""Checks for your own layer inversions, linear maps and solvers, as the package's own tests use.

Each raises an ``AssertionError`` that says which promise was broken, by how much, on what.
"""

from featprop_sklearn.testing.inverter import check_inverter
from featprop_sklearn.testing.linear_map import check_linear_map
from featprop_sklearn.testing.solver import check_solver

__all__ = ["check_inverter", "check_linear_map", "check_solver"]
