"""Labels to wanted network outputs: one rule a file, and :class:`OutputTargets` to apply them."""

from .classes import ClassMap, resolve_classes
from .conditions import Conditions
from .heads import HEADS, Head, resolve_head
from .margin import auto_margin
from .margin_set import margin_violation
from .max_assign import max_assign_target
from .nearest import nearest_target
from .one_hot import one_hot_target
from .regression import regression_target
from .rule import RULES, TASKS, OutputTargets

__all__ = [
    "HEADS",
    "RULES",
    "TASKS",
    "ClassMap",
    "Conditions",
    "Head",
    "OutputTargets",
    "auto_margin",
    "margin_violation",
    "max_assign_target",
    "nearest_target",
    "one_hot_target",
    "regression_target",
    "resolve_classes",
    "resolve_head",
]
