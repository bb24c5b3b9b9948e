"""The ``memory`` parameter: results kept under keys in a joblib Memory."""

from __future__ import annotations

from typing import Any

from sklearn.utils.validation import check_memory

__all__ = ["ResultStore", "open_store"]


def open_store(memory: Any) -> ResultStore | None:
    """Turn the ``memory`` parameter into a store, as scikit-learn's Pipeline reads it.

    Parameters
    ----------
    memory : None, str, or object with the joblib.Memory interface
        A string is a folder.

    Returns
    -------
    ResultStore or None
        None where nothing is to be kept.

    Raises
    ------
    ValueError
        If ``memory`` is none of these.
    """
    checked = check_memory(memory)
    return None if getattr(checked, "location", checked) is None else ResultStore(checked)


class ResultStore:
    """Results by key. Processes may share one: joblib writes a result whole or not at all.

    Parameters
    ----------
    memory : joblib.Memory
        Where results are kept.
    """

    def __init__(self, memory: Any) -> None:
        self._keep = memory.cache(_keep, ignore=["result"])

    def get(self, *key: str) -> Any:
        """Return the result that is kept under a key; None if there is none."""
        if not self._keep.check_call_in_cache(key, None):
            return None
        try:
            return self._keep(key, None)
        except LookupError:  # broken, or cleared by another process since the check
            return None

    def put(self, result: Any, *key: str) -> None:
        """Keep a result, other than None, under a key."""
        self._keep(key, result)


def _keep(key: tuple[str, ...], result: Any) -> Any:
    """Return the result: the function whose calls joblib keeps, by their key alone."""
    if result is None:
        raise LookupError(key)
    return result
