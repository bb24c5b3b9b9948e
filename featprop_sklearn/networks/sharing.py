"""Cloning that shares the user's network instead of copying it."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from sklearn.base import clone

__all__ = ["SharedParameters"]


class SharedParameters:
    """Mixin: ``clone`` hands on the parameters named in ``_shared``, and clones the others.

    A network is never modified by the estimators, so every clone may hold the same
    object; copying it for each fold and candidate would cost its size every time.
    """

    _shared: ClassVar[tuple[str, ...]] = ()

    def __sklearn_clone__(self) -> Any:
        parameters = self.get_params(deep=False)  # type: ignore[attr-defined]
        twin = type(self)(
            **{
                name: value if name in self._shared else clone(value, safe=False)
                for name, value in parameters.items()
            }
        )
        for configuration in ("_metadata_request", "_sklearn_output_config"):
            if configuration in self.__dict__:
                setattr(twin, configuration, copy.deepcopy(self.__dict__[configuration]))
        return twin
