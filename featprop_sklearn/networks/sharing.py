"""Parameters that hold a user's network: shared by clones, and never changed through them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

from sklearn.base import clone

__all__ = ["SharedParameters"]


class SharedParameters:
    """Mixin for estimators: ``clone`` hands on the parameters named in ``_shared`` as they are.

    A network is never modified by the estimators, so every clone may hold the same
    object; copying it for each fold and candidate would cost its size every time. For
    the same reason its own parameters (``module__alpha``) are neither shown nor set.
    """

    _shared: ClassVar[tuple[str, ...]] = ()

    def __sklearn_clone__(self) -> Any:
        parameters = self.get_params(deep=False)
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

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get the parameters, without those of a shared object.

        Parameters
        ----------
        deep : bool, default=True
            Whether to include the parameters of other nested estimators.

        Returns
        -------
        dict
            Parameter names and values.
        """
        parameters = super().get_params(deep=deep)  # type: ignore[misc]
        return {name: value for name, value in parameters.items() if not self._is_inside(name)}

    def set_params(self, **params: Any) -> Self:
        """Set parameters.

        Parameters
        ----------
        **params : dict
            Parameter names and values.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            For a parameter of a shared object, which is the user's and stays as it is.
        """
        inside = [name for name in params if self._is_inside(name)]
        if inside:
            owner = inside[0].partition("__")[0]
            raise ValueError(
                f"{inside[0]} cannot be set: {owner} is a pretrained network, and changing it "
                f"here would change yours. Set {owner} itself."
            )
        return super().set_params(**params)  # type: ignore[misc]

    def _is_inside(self, name: str) -> bool:
        owner, inner, _ = name.partition("__")
        return bool(inner) and owner in self._shared
