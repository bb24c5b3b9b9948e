"""Relative Sectional Propagation: relevance of a class and its rivals, back to the input."""

from featprop_sklearn.inspection.relevance import convolution, padding, rules
from featprop_sklearn.inspection.relevance.attribution import RelativeSectionalPropagation
from featprop_sklearn.inspection.relevance.registry import Call, register_relevance_rule
from featprop_sklearn.inspection.relevance.rules import pass_through, proportional

for _family in (rules, padding, convolution):
    for _layer, _rule in _family.RULES.items():
        register_relevance_rule(_layer, _rule)

__all__ = [
    "Call",
    "RelativeSectionalPropagation",
    "pass_through",
    "proportional",
    "register_relevance_rule",
]
