"""The regressor."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, column_or_1d
from torch import Tensor

from featprop_sklearn.data import to_array, without_torch
from featprop_sklearn.estimators.base import FeatureBackpropBase
from featprop_sklearn.estimators.samples import Samples, with_labels
from featprop_sklearn.least_squares import Solver
from featprop_sklearn.networks import Chain, Network
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import StandardUnits

__all__ = ["FeatureBackpropRegressor"]


class FeatureBackpropRegressor(RegressorMixin, FeatureBackpropBase):
    """Post-train a pretrained regression network by sending targets backwards through it.

    The wanted output is y itself; see :class:`FeatureBackpropClassifier` for the rest. Each value
    of y is measured from its mean, in its standard deviation: what is learned does not depend on
    units.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPRegressor, or None
        The pretrained network, one output per value of y. None: a small MLP is trained
        first.
    split : str, int, list of them, or "auto", default="auto"
        Where targets are set; "auto" is the network's output.
    propagation : {"joint", "layerwise", "layerwise_in_range"}, default="joint"
        How targets go backwards.
    target_step : float, default=1.0
        Share in (0, 1] of the way from the present to the wanted output.
    trainer : {"auto", "closed_form", "gradient"} or such an object, default="auto"
        How the stages up to the split are trained: :class:`AutoTrainer` (closed form, then a
        polish by gradients, each if held-out data says so), :class:`ClosedFormTrainer`, or
        :class:`GradientTrainer`, the published way.
    alpha : float, default=None
        Shortcut for ``trainer=GradientTrainer(alpha=alpha)``.
    solver : {"auto", "direct", "sparse", "torus", "torch", "lsqr"} or Solver, default="auto"
        Least-squares solver of affine layers, see :class:`LayerInverter`.
    damping : "auto" or float, default="auto"
        λ of the damped least-squares problems.
    input_shape : tuple of int, default=None
        Shape of one sample, where X is passed as a table of flattened samples.
    validation_fraction : float or "auto", default="auto"
        Share of the rows held out to choose the epoch; "auto" is 0.25 above 200 rows.
    batch_size : int or "auto", default="auto"
        Rows worked on at a time; "auto" is all rows for the default network, else 256.
    device : str, default="auto"
        A torch device; "auto" is the accelerator that torch finds (CUDA, for one) where it
        has float64, else the CPU.
    warm_start : bool, default=False
        Whether ``fit`` goes on from ``module_``.
    memory : str or joblib.Memory, default=None
        Where feature targets are kept: a grid over ``trainer__...`` or over splits then
        computes them once.
    n_jobs : int, default=None
        Components of several splits, or batches of a closed-form sweep, at a time.
    random_state : int, RandomState or None, default=None
        Hold-out, shuffling, dropout, and initial weights where ``module`` is None.
    verbose : int, default=0
        1 prints a line per epoch.

    Attributes
    ----------
    module_ : nn.Module
        The post-trained network, from one tensor to one: where X is a dict, or integers, or the
        network returns an object, in a wrapper.
    network_ : nn.Module
        The same without the wrapper, called as the network was: what to save or use elsewhere.
    split_ : str or list of str
        Names of the split points.
    n_features_in_ : int
        Size of the first dimension of a sample; all numbers of a sample where X is a dict.
    n_iter_ : int
        Epochs run.
    history_ : list of dict
        One entry per epoch; losses are mean squared errors over the variances of y.
    report_ : dict
        As for the classifier, outputs and y standardised by the mean and spread of each value of
        y; a sample is "right" where ‖output − y‖ is at most 1e-3 max(‖y‖, √n_outputs).

    See Also
    --------
    FeatureBackpropClassifier : The same for classification.

    References
    ----------
    Ding, He, Li, Li, "Hierarchical Feature-level Reverse Propagation for Post-Training
    Neural Networks", arXiv:2506.07188.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from featprop_sklearn import FeatureBackpropRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> regressor = FeatureBackpropRegressor(random_state=0).fit(X, y)
    >>> bool(regressor.score(X, y) > 0.4)
    True
    """

    def __init__(
        self,
        module: object = None,
        *,
        split: object = "auto",
        propagation: str = "joint",
        target_step: float = 1.0,
        trainer: object = "auto",
        alpha: float | None = None,
        solver: str | Solver = "auto",
        damping: float | str = "auto",
        input_shape: tuple[int, ...] | None = None,
        validation_fraction: float | str = "auto",
        batch_size: int | str = "auto",
        device: str = "auto",
        warm_start: bool = False,
        memory: Any = None,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.module = module
        self.split = split
        self.propagation = propagation
        self.target_step = target_step
        self.trainer = trainer
        self.alpha = alpha
        self.solver = solver
        self.damping = damping
        self.input_shape = input_shape
        self.validation_fraction = validation_fraction
        self.batch_size = batch_size
        self.device = device
        self.warm_start = warm_start
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Post-train a copy of the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples: a table, a DataFrame, n-D arrays (images), or a torch tensor. For a
            network with several inputs a dict of them, whose keys are names of its
            ``forward``'s arguments, whose integers reach it as int64 (up to 2**24).
            scikit-learn cannot index a dict: for cross-validation or ``GridSearchCV`` pass
            ``skorch.helper.SliceDict(**X)``. A memory map (``np.memmap``), a torch
            ``Dataset`` of samples or of pairs (sample, label), or a ``SliceDataset`` of
            skorch is read ``batch_size`` rows at a time where it holds more than 64 MiB,
            else at once.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Values; None only for a
            Dataset of pairs, which is then read once more.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0.

        Returns
        -------
        self
            The fitted estimator.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train on a chunk of the data; the first chunk sets the network up, and the units of y.

        "gradient" runs one epoch; the other trainers refit every layer in closed form to this
        chunk and all earlier ones.

        ``history_`` and ``n_iter_`` go on from chunk to chunk, ``report_`` is the chunk's.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Values; None only for a
            Dataset of pairs, which is then read once more.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0.

        Returns
        -------
        self
            The estimator.
        """
        return self._partial_fit(X, y, sample_weight)

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return R², the coefficient of determination of :meth:`predict`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Values; None only for a Dataset of pairs.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0.

        Returns
        -------
        float
            1 at best.
        """
        X, y = with_labels(X, y)
        return super().score(X, y, sample_weight)

    def predict(self, X: Any) -> NDArray:
        """Return the network's outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Flat where y was.
        """
        outputs = to_array(self._predict_outputs(X))
        return outputs[:, 0] if self._flat else outputs

    def _check_y(self, samples: Samples, y: ArrayLike | None) -> NDArray:
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        values = without_torch(y, "y")
        values = check_array(values, ensure_2d=False, dtype=np.float64, input_name="y")
        if values.ndim == 2 and values.shape[1] == 1:
            values = column_or_1d(values, warn=True)
        if len(values) != len(samples):
            raise ValueError(f"X has {len(samples)} samples and y {len(values)}.")
        return values

    def _default_outputs(self, y: NDArray) -> tuple[int, str]:
        return 1 if y.ndim == 1 else y.shape[1], "regression"

    def _encode(self, y: NDArray) -> NDArray:
        return np.asarray(y, dtype=np.float64).reshape(len(y), -1)

    def _read_labels(self, y: NDArray, outputs: Tensor, network: Network) -> str:
        width = 1 if outputs.ndim == 1 else outputs.shape[1]
        wanted = 1 if y.ndim == 1 else y.shape[1]
        if width != wanted:
            raise ValueError(
                f"y holds {wanted} value{'s' if wanted > 1 else ''} per sample, but the network "
                f"has {width} output{'s' if width > 1 else ''}. Pass a network with {wanted}, or "
                "the y that it was trained for."
            )
        self._flat = y.ndim == 1
        return "regression"

    def _make_output_targets(
        self, task: str, outputs: Tensor, y: NDArray, weights: Tensor, last_layer: type | None
    ) -> OutputTargets:
        # in standard units each value has spread 1
        scale = float(np.sqrt(self._encode(y).shape[1]))
        return OutputTargets(task, step=self.target_step, scale=scale)

    def _standard_units(
        self, chain: Chain, y: NDArray, weights: NDArray, outputs: Tensor
    ) -> StandardUnits:
        said = to_array(outputs.reshape(len(outputs), -1), np.float64)
        return StandardUnits.of(self._encode(y), weights, said).fitting(chain)

    def _class_weights(self, y: NDArray, weights: NDArray) -> NDArray:
        return np.ones(len(y))

    def _strata(self, y: NDArray, fraction: float) -> NDArray | None:
        return None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
