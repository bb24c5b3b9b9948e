"""Checks of arguments that several functions take."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = ["check_integer", "check_number", "is_integer", "is_number"]


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer of Python or NumPy, which booleans are not here."""
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, which booleans are not here."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: Any, at_least: int = 1) -> None:
    """Refuse what is no integer, or too small.

    Raises
    ------
    ValueError
        If it is not allowed; the text names the parameter.
    """
    if not is_integer(value) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}; got {value!r}.")


def check_number(name: str, value: Any) -> None:
    """Refuse what is no finite number.

    Raises
    ------
    ValueError
        If it is not; the text names the parameter.
    """
    if not is_number(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}.")
