"""The classifier."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_array, column_or_1d
from torch import Tensor

from featprop_sklearn.data import to_array, without_torch
from featprop_sklearn.estimators.base import FeatureBackpropBase
from featprop_sklearn.estimators.checks import check_no_label_missing
from featprop_sklearn.estimators.samples import Samples, with_labels
from featprop_sklearn.least_squares import Solver
from featprop_sklearn.networks import Network
from featprop_sklearn.output_targets import (
    OutputTargets,
    auto_margin,
    resolve_classes,
    resolve_head,
)

__all__ = ["FeatureBackpropClassifier"]


class FeatureBackpropClassifier(ClassifierMixin, FeatureBackpropBase):
    """Post-train a pretrained classifier network by sending targets backwards through it.

    The label becomes a wanted output, the wanted output a wanted feature at a chosen
    split (each step a projection, a linear system or a least-squares problem). The stages
    up to the split are then trained towards it, in closed form or by gradients; the stages
    after it stay frozen. The network that is passed
    in is never changed: ``module_`` is a post-trained copy in eval mode.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPClassifier, or None
        The pretrained network, one output per class (or one logit for two classes, or
        one per label for multi-label y). None: a small MLP is trained first.
    split : str, int, list of them, or "auto", default="auto"
        Where targets are set: a name from ``split_points(module, X)`` or an index into
        it; "auto" is the network's output. The parts between several splits are trained
        independently of each other, ``n_jobs`` at a time.
    propagation : {"joint", "layerwise", "layerwise_in_range"}, default="joint"
        How targets go backwards: the nearest feature that the frozen stages together turn
        into the label; or layer by layer, the published rule, which misses many labels; "in
        range" keeps it within what layers can produce.
    output_target : {"nearest", "max_assign", "one_hot"}, default="nearest"
        The wanted logits: the nearest ones in which the label leads by the margin; the
        label's logit alone raised; or the one-hot vector.
    margin : float or "auto", default="auto"
        Lead of the label, in units of the logits; "auto" is the median standard
        deviation of a sample's logits. 0 is the published rule, which leaves ties.
    target_step : float, default=1.0
        Share in (0, 1] of the way from the present to the wanted logits.
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
    classes : array-like, default=None
        Labels in the order of the outputs. None: a scikit-learn or skorch net brings its
        own; integer labels in range(n_outputs) are indices; else the sorted labels.
    class_weight : dict, "balanced" or None, default=None
        Factors on the sample weights.
    head : {"auto", "logits", "probabilities", "log_probabilities"}, default="auto"
        What the network puts out.
    input_shape : tuple of int, default=None
        Shape of one sample, where X is passed as a table of flattened samples.
    validation_fraction : float or "auto", default="auto"
        Share of the rows held out to choose the epoch; "auto" is 0.25 above 200 rows and
        0 otherwise. A sample weight equals a repetition only without a hold-out and with
        all rows in one batch.
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
    classes_ : ndarray of shape (n_classes,)
        Labels, in the order of the columns of ``predict_proba``.
    n_features_in_ : int
        Size of the first dimension of a sample; all numbers of a sample where X is a dict.
    n_iter_ : int
        Epochs run.
    history_ : list of dict
        One entry per epoch.
    report_ : dict
        ``repair_rate``, ``kept_rate``, ``reached``, ``displacement``,
        ``relative_displacement``, ``residual`` of the training rows' feature targets
        before training (a dict of these for several splits, with ``used``: whether the part
        trained for it fits the others), and ``seconds``. Of more than 2,000 rows every k-th
        is looked at, unless the trainer needs the targets of all.

    See Also
    --------
    FeatureBackpropRegressor : The same for regression.
    feature_gap : How far every split is from what the labels ask for.

    References
    ----------
    Ding, He, Li, Li, "Hierarchical Feature-level Reverse Propagation for Post-Training
    Neural Networks", arXiv:2506.07188.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from featprop_sklearn import FeatureBackpropClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = FeatureBackpropClassifier(random_state=0).fit(X, y)
    >>> bool(classifier.score(X, y) > 0.9)
    True
    """

    def __init__(
        self,
        module: object = None,
        *,
        split: object = "auto",
        propagation: str = "joint",
        output_target: str = "nearest",
        margin: float | str = "auto",
        target_step: float = 1.0,
        trainer: object = "auto",
        alpha: float | None = None,
        solver: str | Solver = "auto",
        damping: float | str = "auto",
        classes: ArrayLike | None = None,
        class_weight: dict | str | None = None,
        head: str = "auto",
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
        self.output_target = output_target
        self.margin = margin
        self.target_step = target_step
        self.trainer = trainer
        self.alpha = alpha
        self.solver = solver
        self.damping = damping
        self.classes = classes
        self.class_weight = class_weight
        self.head = head
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
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Labels, or a 0/1 matrix for multi-label problems; None only for a
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
        self,
        X: Any,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train on a chunk of the data; the first chunk sets the network up.

        "gradient" runs one epoch; the other trainers refit every layer in closed form to this
        chunk and all earlier ones.

        ``history_`` and ``n_iter_`` go on from chunk to chunk, ``report_`` is the chunk's.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Labels.
        classes : array-like, default=None
            All labels, sorted, at the first call where ``module`` is None.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0.

        Returns
        -------
        self
            The estimator.
        """
        first = not hasattr(self, "module_")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all labels at once, which partial_fit never has; "
                "pass a dict of weights."
            )
        if first:
            if self.module is None and classes is None and self.classes is None:
                raise ValueError(
                    "classes must be passed to the first call of partial_fit where module is None."
                )
            self._chunk_classes = classes
        try:
            return self._partial_fit(X, y, sample_weight)
        finally:
            self.__dict__.pop("_chunk_classes", None)

    def decision_function(self, X: Any) -> NDArray:
        """Return the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,), (n_samples, n_classes) or (n_samples, n_labels)
            For two classes the lead of the second over the first.
        """
        return self._decision(self._logits(X))

    def predict_proba(self, X: Any) -> NDArray:
        """Return class probabilities: softmax of the logits, or a sigmoid of each.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_labels)
            Columns as in ``classes_``.
        """
        logits = self._logits(X).double()
        if self._class_map.task == "multiclass":
            return to_array(torch.softmax(logits, dim=1))
        positive = torch.sigmoid(logits)
        if self._class_map.task == "multilabel":
            return to_array(positive)
        return to_array(torch.cat([1 - positive, positive], dim=1))

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the mean accuracy of :meth:`predict`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Labels; None only for a Dataset of pairs.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0.

        Returns
        -------
        float
            Share of the samples whose labels are all right.
        """
        X, y = with_labels(X, y)
        return super().score(X, y, sample_weight)

    def predict(self, X: Any) -> NDArray:
        """Return the most probable label of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            Labels.
        """
        logits = self._logits(X)
        if self._class_map.task == "multiclass":
            return self._class_map.decode(to_array(logits.argmax(dim=1)))
        positive = to_array((logits > 0).long())
        return self._class_map.decode(
            positive if self._class_map.task == "multilabel" else positive[:, 0]
        )

    def _logits(self, X: Any) -> Tensor:
        outputs = self._predict_outputs(X)
        return self._output_targets.head.to_logits(outputs)

    def _decision(self, logits: Tensor) -> NDArray:
        if self._class_map.task == "multiclass" and logits.shape[1] == 2:
            return to_array(logits[:, 1] - logits[:, 0])
        return to_array(logits[:, 0] if self._class_map.task == "binary" else logits)

    def _check_y(self, samples: Samples, y: ArrayLike | None) -> NDArray:
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        y = without_torch(y, "y")
        check_no_label_missing(y)
        check_classification_targets(y)
        if type_of_target(y, input_name="y").startswith("multilabel"):
            labels = check_array(y, dtype=None, input_name="y")
        else:
            labels = column_or_1d(y, warn=True)
        if len(labels) != len(samples):
            raise ValueError(f"X has {len(samples)} samples and y {len(labels)}.")
        return labels

    def _default_outputs(self, y: NDArray) -> tuple[int, str]:
        given = self._given_classes()
        labels = np.unique(y) if given is None else given
        width = y.shape[1] if y.ndim == 2 else len(labels)
        if width < 2:
            raise ValueError(
                f"y holds one class only ({labels.tolist()}); at least two classes are needed to "
                "train the default network. Pass a pretrained network as module, or more data."
            )
        self._class_map = resolve_classes(y, width, None if y.ndim == 2 else labels)
        return width, self._class_map.task

    def _given_classes(self) -> NDArray | None:
        given = self.classes if self.classes is not None else getattr(self, "_chunk_classes", None)
        return None if given is None else np.asarray(given)

    def _encode(self, y: NDArray) -> NDArray:
        return self._class_map.encode(y)

    def _read_labels(self, y: NDArray, outputs: Tensor, network: Network) -> str:
        width = 1 if outputs.ndim == 1 else outputs.shape[1]
        if network.per_logit and y.ndim == 1:
            raise ValueError(
                f"The network was fitted on several labels a sample ({width} of them), and y holds "
                "one label a sample. Pass y as a 0/1 matrix with one column an output."
            )
        if self.module is not None:
            known = None if y.ndim == 2 else network.classes
            self._class_map = resolve_classes(y, width, self._given_classes(), known)
        self.classes_ = self._class_map.classes
        if y.ndim == 2 and y.shape[1] > 2 and (np.count_nonzero(y, axis=1) == 1).all():
            warnings.warn(
                f"Every row of y has a single 1, and is taken as {y.shape[1]} labels, each a "
                "decision of its own. If these are classes of which a sample has one, pass "
                "y.argmax(axis=1).",
                UserWarning,
                stacklevel=6,
            )
        return self._class_map.task

    def _make_output_targets(
        self, task: str, outputs: Tensor, y: NDArray, weights: Tensor, last_layer: type | None
    ) -> OutputTargets:
        per_logit = task != "multiclass"
        columns = outputs.reshape(len(outputs), -1)
        head = resolve_head(self.head, last_layer, columns, per_logit)
        margin: Any = self.margin
        if margin == "auto":
            margin = auto_margin(head.to_logits(columns), weights, per_logit=per_logit)
        multiple = 1.0 if self.margin == "auto" else None
        return OutputTargets(task, self.output_target, margin, self.target_step, head, multiple)

    def _class_weights(self, y: NDArray, weights: NDArray) -> NDArray:
        if self.class_weight is None:
            return np.ones(len(y))
        if y.ndim == 2 and self.class_weight != "balanced":
            raise ValueError(
                "class_weight must be None or 'balanced' for multi-label y, whose samples have no "
                f"single class; got {self.class_weight!r}. Use sample_weight."
            )
        if self.class_weight == "balanced":
            columns = y.reshape(len(y), -1).T
            return np.prod([_balanced(labels, weights) for labels in columns], axis=0)
        if not isinstance(self.class_weight, dict):
            raise ValueError(
                "class_weight must be a dict of label to factor, 'balanced' or None; got "
                f"{self.class_weight!r}."
            )
        return compute_sample_weight(self.class_weight, y)

    def _strata(self, y: NDArray, fraction: float) -> NDArray | None:
        """Keep the share of each class where every class has enough samples."""
        if y.ndim == 2:
            return None
        smallest = np.unique(y, return_counts=True)[1].min()
        return y if smallest * min(fraction, 1 - fraction) >= 1 else None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _balanced(labels: NDArray, weights: NDArray) -> NDArray:
    """Return factors that give every class the same weight in all, and keep the total."""
    classes, index = np.unique(labels, return_inverse=True)
    totals = np.bincount(index, weights=weights)
    return (totals.sum() / (len(classes) * totals))[index]
