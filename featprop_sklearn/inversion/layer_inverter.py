"""A layer as a scikit-learn transformer that runs it and inverts it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import prod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor, nn

from featprop_sklearn.data import (
    batches,
    check_samples,
    double_device,
    module_device,
    module_dtype,
    plain_torch,
    to_array,
    to_tensor,
    without_torch,
)
from featprop_sklearn.inversion.base import Bounds, InversionOptions
from featprop_sklearn.inversion.prepare import prepare_inverter
from featprop_sklearn.least_squares import Solver, SolveResult, join_results
from featprop_sklearn.networks import SharedParameters, private_layer

__all__ = ["LayerInverter"]

#: of float64 copies of inputs and outputs
BYTES_AT_A_TIME = 2**26


class LayerInverter(
    SharedParameters, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Run one frozen torch layer, and find the inputs that give wanted outputs.

    ``inverse_transform`` solves, per sample, for the input nearest to a reference
    among the inputs whose output is nearest to the wanted one::

        min ‖x − x0‖²  over  argmin ‖f(x) − y‖²

    Set-up (shapes, factorisation, damping) happens once, in ``fit``.

    Parameters
    ----------
    layer : nn.Module, default=None
        One tensor in, one tensor out, batch first; used in eval mode, never modified.
        None is ``nn.Identity()``.
    solver : {"auto", "direct", "sparse", "torus", "torch", "lsqr"} or Solver, default="auto"
        Least-squares solver of affine layers: factorisation of the dense or of a sparse
        matrix, transforms (convolutions alone), batched matrix-free iterations on the layer's
        device, or scipy's sparse LSQR. "auto" takes the one of least cost within 1 GiB;
        ``AutoSolver(max_bytes=...)`` sets another limit, and other solvers can be passed with
        their settings too.
    damping : "auto" or float, default="auto"
        λ of ‖A d − r‖² + λ²‖d‖²; 0 is the exact nearest preimage, "auto" is 0 up to
        condition 1e3 and grows continuously beyond.
    bounds : tuple of (low, high), default=None
        Closed range that the inputs must stay in.

    Attributes
    ----------
    mean_ : ndarray of shape (*in_shape)
        Mean of the samples seen in ``fit``: the default reference.
    in_shape_, out_shape_ : tuple of int
        Shapes of one sample before and after the layer.
    n_features_in_ : int
        Size of the first dimension of a sample.
    result_ : SolveResult
        Solver, status, residual, iterations, damping, advice, and why the solver was chosen,
        of the last inversion (after ``fit``: of a trial inversion of the first sample).

    See Also
    --------
    make_inversion_pipeline : A whole network as a Pipeline of these.
    register_inverter : Teach the inversion of your own layer.

    References
    ----------
    Ding, He, Li, Li, "Hierarchical Feature-level Reverse Propagation for Post-Training
    Neural Networks", arXiv:2506.07188.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from featprop_sklearn import LayerInverter
    >>> X = np.array([[1.0, -2.0], [0.5, 3.0]])
    >>> relu = LayerInverter(nn.ReLU()).fit(X)
    >>> relu.inverse_transform([[2.0, 0.0]], reference=[[1.0, -2.0]])
    array([[ 2., -2.]])
    """

    _shared = ("layer",)

    def __init__(
        self,
        layer: nn.Module | None = None,
        *,
        solver: str | Solver = "auto",
        damping: str | float = "auto",
        bounds: Bounds | None = None,
    ) -> None:
        self.layer = layer
        self.solver = solver
        self.damping = damping
        self.bounds = bounds

    @plain_torch()
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn the shapes, set up the inversion, keep the mean of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, *in_shape)
            Inputs of the layer.
        y : None
            Ignored.

        Returns
        -------
        self
            The fitted transformer.
        """
        samples = check_samples(self, X, reset=True)
        options = InversionOptions(self.solver, self.damping, _checked_bounds(self.bounds))
        layer = private_layer(self._checked_layer()).requires_grad_(False)
        self._device = double_device(module_device(layer))
        self.layer_ = layer.to(self._device)
        self._dtype = _own_dtype(self.layer_)
        self.in_shape_ = samples.shape[1:]
        self._fitted_dtype = samples.dtype
        self.mean_ = samples.mean(axis=0, dtype=np.float64)
        first = self._first_output(samples[:1])
        self.out_shape_ = tuple(first.shape[1:])
        self._n_features_out = self.out_shape_[0] if self.out_shape_ else 1
        self._inverter = prepare_inverter(self.layer_, self.in_shape_, options, self._device)
        self.result_ = self._invert(to_array(first, samples.dtype), self._references(None, 1))
        return self

    @plain_torch()
    def transform(self, X: ArrayLike) -> NDArray:
        """Run the layer.

        Parameters
        ----------
        X : array-like of shape (n_samples, *in_shape)
            Inputs of the layer.

        Returns
        -------
        ndarray of shape (n_samples, *out_shape)
            Outputs, in the dtype of X.
        """
        check_is_fitted(self)
        samples = check_samples(self, X, reset=False)
        self._check_shape(samples, self.in_shape_, "X", "inputs")
        return to_array(self._run(samples), samples.dtype)

    def inverse_transform(self, Y: ArrayLike, reference: ArrayLike | None = None) -> NDArray:
        """Find the nearest preimages of wanted outputs.

        Parameters
        ----------
        Y : array-like of shape (n_samples, *out_shape)
            Wanted outputs of the layer.
        reference : array-like of shape (n_samples, *in_shape), default=None
            The inputs to stay near to; the fitted mean for every row if None.

        Returns
        -------
        ndarray of shape (n_samples, *in_shape)
            Inputs, in the dtype of Y. Rows (for elementwise layers: entries) whose
            wanted output is what the reference gives already return the reference.

        Warns
        -----
        ConvergenceWarning
            If the solver did not converge for every row.
        """
        check_is_fitted(self)
        wanted = _checked_array(Y, "Y")
        self._check_shape(wanted, self.out_shape_, "Y", "outputs")
        return self._nearest(wanted, self._references(reference, len(wanted)))

    @plain_torch()
    def _nearest(self, wanted: NDArray, references: NDArray) -> NDArray:
        """Find the nearest preimages of arrays that are checked already."""
        result = self._invert(wanted, references)
        self.result_ = result
        if not result.converged:
            warnings.warn(
                f"{type(self.layer_).__name__}: the inversion did not converge for every sample "
                f"(solver {result.solver}, residual {result.residual:.1e} after "
                f"{result.iterations} iterations). {result.advice}",
                ConvergenceWarning,
                stacklevel=4,
            )
        return to_array(result.solution, wanted.dtype)

    @torch.no_grad()
    def _invert(self, wanted: NDArray, references: NDArray) -> SolveResult:
        """Invert some rows at a time: float64 copies of all of them need not fit in memory."""
        per_row = 8 * (prod(self.in_shape_) + prod(self.out_shape_))
        rows = max(1, BYTES_AT_A_TIME // max(per_row, 1))
        return join_results(
            [
                self._invert_rows(wanted[part], references[part])
                for part in batches(len(wanted), rows)
            ]
        )

    def _invert_rows(self, wanted: NDArray, references: NDArray) -> SolveResult:
        """Invert the rows whose wanted output is not met already."""
        y, x0 = self._double(wanted), self._double(references)
        met = self._met_already(wanted, references, x0)
        unmet = ~met.reshape(len(y), -1).all(dim=1)
        if not unmet.any():
            unmet[0] = True  # the result always says what the inversion would do
        if not met.any():
            return self._inverter.invert(y, x0)
        result = self._inverter.invert(y[unmet], x0[unmet])
        solution = x0.clone()
        solution[unmet] = torch.where(met[unmet], x0[unmet], result.solution)
        return replace(result, solution=solution)

    def _first_output(self, sample: NDArray) -> Tensor:
        name = type(self.layer_).__name__
        try:
            output = self._run(sample)
        except Exception as error:  # whatever a user's forward may raise
            raise ValueError(
                f"layer ({name}) refused X of shape (n_samples, "
                f"{', '.join(map(str, sample.shape[1:]))}): {error}. Pass X in the shape that the "
                "layer takes."
            ) from error
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer ({name}) must return one tensor; it returned {type(output).__name__}. "
                "Wrap it in a module that returns the tensor alone."
            )
        return output

    def _checked_layer(self) -> nn.Module:
        if self.layer is None:
            return nn.Identity()
        if not isinstance(self.layer, nn.Module):
            raise TypeError(
                "layer must be a torch.nn.Module instance or None; got "
                f"{self.layer!r}. For a whole network use make_inversion_pipeline."
            )
        return self.layer

    def _run(self, samples: NDArray) -> Tensor:
        """Run the layer in its own dtype; a layer without parameters takes the samples' dtype."""
        return self.layer_(self._native(samples))

    def _native(self, samples: NDArray) -> Tensor:
        return to_tensor(samples, self._dtype or _dtype(samples), self._device)

    def _double(self, samples: NDArray) -> Tensor:
        return to_tensor(samples, torch.float64, self._device)

    def _met_already(self, wanted: NDArray, references: NDArray, x0: Tensor) -> Tensor:
        """Where the layer, in its own and the caller's precision, gives the wanted output."""
        y = to_tensor(wanted, _dtype(wanted), self._device)
        met = self._run(references).to(y.dtype) == y
        if not self._inverter.elementwise:
            met = self._by_row(met)
        if self._inverter.options.bounds is None:
            return met
        low, high = self._inverter.options.bounds
        inside = (low <= x0) & (x0 <= high)
        return met & (inside if self._inverter.elementwise else self._by_row(inside))

    def _by_row(self, entries: Tensor) -> Tensor:
        """Whether all entries of a row hold, shaped to broadcast over inputs."""
        return entries.reshape(len(entries), -1).all(dim=1).reshape(-1, *(1,) * len(self.in_shape_))

    def _references(self, reference: ArrayLike | None, n_samples: int) -> NDArray:
        if reference is None:
            mean = self.mean_.astype(self._fitted_dtype)  # as the layer saw it
            return np.broadcast_to(mean, (n_samples, *self.in_shape_))
        checked = _checked_array(reference, "reference")
        self._check_shape(checked, self.in_shape_, "reference", "inputs")
        if len(checked) != n_samples:
            raise ValueError(
                f"reference must hold one input per row of Y: Y has {n_samples} rows, "
                f"reference has {len(checked)}."
            )
        return checked

    def _check_shape(self, array: NDArray, shape: tuple[int, ...], name: str, what: str) -> None:
        if array.shape[1:] != tuple(shape):
            raise ValueError(
                f"{name} must hold {what} of the layer, shape (n_samples, "
                f"{', '.join(map(str, shape))}); got shape {array.shape}."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _own_dtype(layer: nn.Module) -> torch.dtype | None:
    """Return the dtype of a layer, None if it computes in any."""
    has_dtype = any(t.is_floating_point() for t in layer.state_dict().values())
    return module_dtype(layer) if has_dtype else None


def _dtype(array: NDArray) -> torch.dtype:
    return torch.float32 if array.dtype == np.float32 else torch.float64


def _checked_array(values: ArrayLike, name: str) -> NDArray:
    return check_array(
        without_torch(values, name),
        allow_nd=True,
        ensure_2d=False,
        dtype=(np.float64, np.float32),
        input_name=name,
    )


def _checked_bounds(bounds: Bounds | None) -> Bounds | None:
    if bounds is None:
        return None
    try:
        low, high = (float(end) for end in bounds)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not low <= high:
        raise ValueError(f"bounds must be (low, high) with low <= high, or None; got {bounds!r}.")
    return low, high
