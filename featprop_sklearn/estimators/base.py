"""What classifier and regressor share: the way from (module, X, y) to a post-trained network."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from featprop_sklearn.data import (
    Inputs,
    LazyRows,
    batches,
    module_device,
    module_dtype,
    plain_torch,
    resolve_device,
    spread_rows,
    to_array,
    to_inputs,
    to_tensor,
    without_torch,
)
from featprop_sklearn.estimators.checks import (
    check_outputs,
    checked_batch_size,
    checked_fraction,
    checked_trainer,
)
from featprop_sklearn.estimators.notices import (
    tell_of_dead_ends,
    tell_of_parts_left_out,
    tell_of_sweeps_in_vain,
)
from featprop_sklearn.estimators.samples import EXAMPLES, Samples, TakesSamples, with_labels
from featprop_sklearn.estimators.saving import SavedOnCPU
from featprop_sklearn.networks import (
    Chain,
    Network,
    SharedParameters,
    as_network,
    build_chain,
    chain_splits,
    input_dtype,
    last_layer_type,
    private_copy,
    probe_network,
    resolve_splits,
    unwrap,
    with_inputs,
)
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import Propagated, cached_propagate, make_rule
from featprop_sklearn.training import (
    ClosedFormTrainer,
    Labelled,
    StandardNetwork,
    StandardUnits,
    Trainer,
    post_train,
    pretrain_default_network,
)

__all__ = ["FeatureBackpropBase"]

#: rows whose targets are shown, at most, where none is trained on: shares of them are known to
#: a hundredth, while a search for all would take longer than the training
SHOWN = 2_000


@dataclass(frozen=True)
class _Given:
    """Checked rows of what the user passed."""

    samples: Samples
    y: NDArray
    weights: NDArray

    def __getitem__(self, rows: NDArray | slice) -> _Given:
        return _Given(self.samples[rows], self.y[rows], self.weights[rows])

    def where(self, mask: NDArray) -> _Given:
        """Return the rows of a mask, without a copy if these are all."""
        return self if mask.all() else self[mask]


class FeatureBackpropBase(SharedParameters, TakesSamples, SavedOnCPU, ABC):
    """Common part of :class:`FeatureBackpropClassifier` and :class:`FeatureBackpropRegressor`.

    Subclasses say what y means: they encode it, choose the output targets and read
    predictions off the network's output.
    """

    _shared = ("module",)
    _output_targets: OutputTargets
    _units: StandardUnits | None = None
    history_: list[dict[str, Any]]
    _chunks_seen: int
    _chunk_sums: dict[str, dict[str, Any]]

    # What a subclass knows -----------------------------------------------------------

    @abstractmethod
    def _default_outputs(self, y: NDArray) -> tuple[int, str]:
        """Width and task of the default network for this y."""

    @abstractmethod
    def _check_y(self, samples: Samples, y: ArrayLike | None) -> NDArray:
        """Check y as scikit-learn does, one row per sample."""

    @abstractmethod
    def _encode(self, y: NDArray) -> NDArray:
        """Turn labels or values into what OutputTargets takes."""

    @abstractmethod
    def _read_labels(self, y: NDArray, outputs: Tensor, network: Network) -> str:
        """Learn what the outputs mean (classes), and return the task."""

    @abstractmethod
    def _make_output_targets(
        self, task: str, outputs: Tensor, y: NDArray, weights: Tensor, last_layer: type | None
    ) -> OutputTargets:
        """Choose the output targets, once the task is known."""

    def _standard_units(
        self, chain: Chain, y: NDArray, weights: NDArray, outputs: Tensor
    ) -> StandardUnits | None:
        """Choose the units that targets and training have; None for those of the network."""
        return None

    @abstractmethod
    def _class_weights(self, y: NDArray, weights: NDArray) -> NDArray:
        """One factor per sample."""

    @abstractmethod
    def _strata(self, y: NDArray, fraction: float) -> NDArray | None:
        """Name the groups whose shares a hold-out keeps, or None."""

    # Public methods ------------------------------------------------------------------

    @property
    def network_(self) -> torch.nn.Module:
        """The trained copy of the network as it was given: what to save, or to use elsewhere.

        ``module_`` is this network, or a thin module around it that turns X into what it takes
        and picks the outputs from what it returns.
        """
        return unwrap(self.module_)

    def feature_targets(self, X: Any, y: ArrayLike | None = None) -> NDArray | dict[str, NDArray]:
        """Compute the wanted features at the split, for the network as it is after ``fit``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or values; None only for a Dataset of pairs.

        Returns
        -------
        ndarray of shape (n_samples, ...), or dict of str to ndarray
            The targets; by split, where the estimator has several. Of samples that do not fit
            in memory they are a memory map of a temporary file.
        """
        check_is_fitted(self)
        splits = [self.split_] if isinstance(self.split_, str) else self.split_
        targets = self._propagate(X, y, splits).targets
        arrays = {split: _as_array(target) for split, target in targets.items()}
        return arrays[self.split_] if isinstance(self.split_, str) else arrays

    def set_params(self, **params: Any) -> Self:
        """Set parameters, ``trainer__...`` included.

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
            For ``module__...``, and for ``trainer__...`` while ``trainer`` is a string.
        """
        inner = [name for name in params if name.startswith("trainer__")]
        trainer = params.get("trainer", self.trainer)
        if inner and isinstance(trainer, str):
            raise ValueError(
                f"{inner[0]} cannot be set while trainer is the string {trainer!r}. Pass an "
                "object first: GradientTrainer(), ClosedFormTrainer() or AutoTrainer()."
            )
        return super().set_params(**params)

    # fit and partial_fit --------------------------------------------------------------

    @plain_torch()
    def _fit(self, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None) -> Self:
        """Everything that ``fit`` does."""
        started = time.perf_counter()
        X, y = with_labels(X, y)
        goes_on = self.warm_start and hasattr(self, "module_")
        samples = self._known_samples(X) if goes_on else self._samples(X, reset=True)
        trainer = checked_trainer(self.trainer, self.alpha, self.propagation)
        random_state = check_random_state(self.random_state)
        given = self._weighted(samples, self._check_y(samples, y), sample_weight)
        training, held_out = self._hold_out(given, random_state)
        examples, interrupted = self._set_up(
            given, training, held_out, trainer, goes_on, random_state
        )
        self._post_train(examples, training, held_out, trainer, random_state, interrupted)
        self.report_["seconds"] = time.perf_counter() - started
        return self

    @plain_torch()
    def _partial_fit(self, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None) -> Self:
        """One pass over a chunk; the first chunk sets the network up."""
        started = time.perf_counter()
        X, y = with_labels(X, y)
        first = not hasattr(self, "module_")
        samples = self._samples(X, reset=True) if first else self._known_samples(X)
        trainer = checked_trainer(self.trainer, self.alpha, self.propagation)
        random_state = check_random_state(self.random_state)
        given = self._weighted(samples, self._check_y(samples, y), sample_weight)
        history, interrupted = ([] if first else self.history_), False
        examples = None
        if first:
            examples, interrupted = self._set_up(given, given, None, trainer, False, random_state)
        seen, self._chunks_seen = self._chunks_seen, self._chunks_seen + 1
        random_state = check_random_state(_draw_seed(random_state) ^ seen)
        self._post_train(
            examples, given, None, trainer, random_state, interrupted, chunk=self._chunk_sums
        )
        self.history_ = history + self.history_
        self.n_iter_ = _epochs(self.history_)
        self.report_["seconds"] = time.perf_counter() - started
        return self

    def _weighted(self, samples: Samples, y: NDArray, sample_weight: ArrayLike | None) -> _Given:
        """Return the rows that count; a row of zero weight is as good as absent."""
        weights = without_torch(sample_weight, "sample_weight")
        weights = _check_sample_weight(weights, samples, dtype=np.float64, ensure_non_negative=True)
        given = _Given(samples, y, weights).where(weights > 0)
        factors = self._class_weights(given.y, given.weights)
        if not (factors > 0).any():
            raise ValueError(
                "class_weight and sample_weight together are zero for every sample; at least one "
                "sample must count."
            )
        return replace(given, weights=given.weights * factors).where(factors > 0)

    def _set_up(
        self,
        given: _Given,
        training: _Given,
        held_out: _Given | None,
        trainer: Trainer,
        goes_on: bool,
        random_state: np.random.RandomState,
    ) -> tuple[Tensor, bool]:
        """Set ``module_``, ``split_`` and the meaning of the outputs.

        Return the rows that the network was read on, and whether its training was interrupted.
        """
        interrupted = False
        if goes_on:
            network = Network(self.module_)
        elif self.module is None:
            network, interrupted = self._pretrain(given, training, held_out, trainer, random_state)
        else:
            source = as_network(self.module)
            # where the user has it: an index out of range ends a CUDA process, not one on the CPU
            examples = given.samples
            if isinstance(examples, LazyRows):
                examples = examples[:EXAMPLES].read()
            module = with_inputs(private_copy(source.module), examples, self._layout)
            network = replace(source, module=module)
        module = network.module.to(resolve_device(self.device))
        x = self._inputs(given.samples[:8], module)[:]
        module = probe_network(module, x)
        chain = build_chain(module, x)
        splits = resolve_splits(self.split, chain)
        spread = training[spread_rows(len(training.y))]
        inputs = self._inputs(spread.samples, module)
        outputs = self._outputs(module, inputs)
        check_outputs(module, inputs, outputs)
        task = (
            self._output_targets.task if goes_on else self._read_labels(given.y, outputs, network)
        )
        self._units = self._standard_units(chain, spread.y, spread.weights, outputs)
        weights = to_tensor(spread.weights, torch.float64, outputs.device)
        self._output_targets = self._make_output_targets(
            task, outputs, spread.y, weights, last_layer_type(chain)
        )
        self.module_ = module
        self._sample_shape = given.samples.shape[1:]
        self._chunks_seen = 0
        self._chunk_sums = {}
        self.split_ = splits if _is_several(self.split) else splits[0]
        return x, interrupted

    def _pretrain(
        self,
        given: _Given,
        training: _Given,
        held_out: _Given | None,
        trainer: Trainer,
        random_state: np.random.RandomState,
    ) -> tuple[Network, bool]:
        if given.samples.ndim != 2:
            raise ValueError(
                "module=None trains a small network on a table; X has shape "
                f"{given.samples.shape}. Pass a pretrained network as module, or X of shape "
                "(n_samples, n_features)."
            )
        width, task = self._default_outputs(given.y)
        module, interrupted = pretrain_default_network(
            self._labelled(training, task),
            width,
            task,
            trainer=trainer,
            validation=None if held_out is None else self._labelled(held_out, task),
            seed=_draw_seed(random_state),
            verbose=self.verbose,
        )
        return Network(module), interrupted

    def _post_train(
        self,
        examples: Tensor | None,
        training: _Given,
        held_out: _Given | None,
        trainer: Trainer,
        random_state: np.random.RandomState,
        interrupted: bool,
        chunk: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Propagate, train, report; Ctrl-C leaves the network as far as it got."""
        task, module = self._output_targets.task, self.module_
        data = self._labelled(training, task, module)
        validation = None if held_out is None else self._labelled(held_out, task, module)
        self.history_ = []
        self.report_: dict[str, Any] = {}
        self.n_iter_ = 0
        splits = [self.split_] if isinstance(self.split_, str) else list(self.split_)
        try:
            if interrupted:
                raise KeyboardInterrupt
            # the same rows as before: others may lead another way, past other splits
            chain = build_chain(self.module_, data.inputs[:8] if examples is None else examples)
            splits = resolve_splits(splits, chain)
            batch_size = self._rows_at_a_time(len(data))
            network = StandardNetwork(chain, self._units, data.y)
            # targets that are shown, and not trained on, need not be those of every row
            shown = data if trainer.needs_targets else data.take(spread_rows(len(data), SHOWN))
            found = cached_propagate(
                self.memory if chunk is None else None,
                self._rule(),
                network.chain,
                shown.inputs,
                shown.y,
                self._output_targets,
                splits,
                batch_size,
                keep_targets=trainer.needs_targets,
            )
            self.report_ = self._report(found, shown)
            tell_of_dead_ends(found.quality)
            try:
                self.history_, interrupted, left_out = post_train(
                    network.chain,
                    splits,
                    data,
                    found.targets,
                    self._output_targets,
                    trainer,
                    validation=validation,
                    batch_size=-1 if self._whole_batches() else batch_size,
                    seeds=[_draw_seed(random_state) for _ in splits],
                    n_jobs=self.n_jobs,
                    verbose=self.verbose,
                    chunk=chunk,
                )
            finally:
                network.hand_over()
            if not isinstance(self.split_, str):
                for split, report in self.report_.items():
                    report["used"] = split not in left_out
            tell_of_parts_left_out(left_out)
            if isinstance(trainer, ClosedFormTrainer):
                tell_of_sweeps_in_vain(self.history_, splits)
        except KeyboardInterrupt:
            interrupted = True
        self.n_iter_ = _epochs(self.history_)
        if interrupted:
            warnings.warn(
                "Training was interrupted; the estimator is usable, with the network as far as "
                "it got.",
                ConvergenceWarning,
                stacklevel=5,
            )

    # Pieces ---------------------------------------------------------------------------

    def _rows_at_a_time(self, n_samples: int) -> int:
        return checked_batch_size(self.batch_size, n_samples, whole=self.module is None)

    def _whole_batches(self) -> bool:
        """Return whether training takes all rows at once, so that a weight is a repetition."""
        return self.batch_size == "auto" and self.module is None

    def _rule(self) -> Any:
        return make_rule(self.propagation, solver=self.solver, damping=self.damping)

    def _report(self, found: Propagated, data: Labelled) -> dict[str, Any]:
        weights = to_array(data.weights, np.float64)
        by_split: dict[str, dict[str, Any]] = {
            split: {**quality.summary(weights), "status": quality.counts()}
            for split, quality in found.quality.items()
        }
        return dict(by_split[self.split_]) if isinstance(self.split_, str) else dict(by_split)

    @plain_torch()
    def _propagate(
        self,
        X: Any,
        y: ArrayLike | None,
        splits: Any,
        *,
        rows: NDArray | slice = slice(None),
        keep_targets: bool = True,
    ) -> Propagated:
        """Targets and their quality on ``module_``; at every split point if None."""
        X, y = with_labels(X, y)
        samples = self._known_samples(X)
        encoded = self._wanted(self._check_y(samples, y)[rows])
        samples = samples[rows]
        x = self._inputs(samples, self.module_)
        labels = _label_tensor(encoded, self._output_targets.task, x.dtype).to(x.device)
        chain = build_chain(self.module_, x[:8])
        names = chain_splits(chain) if splits is None else resolve_splits(splits, chain)
        batch_size = self._rows_at_a_time(len(x))
        network = StandardNetwork(chain, self._units, labels)
        found = cached_propagate(
            self.memory,
            self._rule(),
            network.chain,
            x,
            labels,
            self._output_targets,
            names,
            batch_size,
            keep_targets=keep_targets,
        )
        own = {
            split: network.in_own_units(split, targets, batch_size)
            for split, targets in found.targets.items()
        }
        return replace(found, targets=own)

    def _wanted(self, y: NDArray) -> NDArray:
        """Turn labels or values into what the network is trained to put out."""
        encoded = self._encode(y)
        return encoded if self._units is None else self._units.standard(encoded)

    def _labelled(
        self, given: _Given, task: str, module: torch.nn.Module | None = None
    ) -> Labelled:
        """Turn rows into tensors for a network; for the default one if None."""
        device = resolve_device(self.device) if module is None else module_device(module)
        dtype = torch.float64 if module is None else module_dtype(module)
        y = self._encode(given.y) if module is None else self._wanted(given.y)
        return Labelled(
            to_inputs(given.samples, dtype if module is None else input_dtype(module), device),
            _label_tensor(y, task, dtype).to(device),
            to_tensor(given.weights, dtype, device),
        )

    def _inputs(self, samples: Samples, module: torch.nn.Module) -> Inputs:
        # where the network is: it may have been saved on a machine with other devices
        return to_inputs(samples, input_dtype(module), module_device(module))

    def _hold_out(
        self, given: _Given, random_state: np.random.RandomState
    ) -> tuple[_Given, _Given | None]:
        """Divide rows into those to train on and those to choose the epoch on."""
        fraction = checked_fraction(self.validation_fraction, len(given.y))
        if fraction == 0:
            return given, None
        training, held_out = train_test_split(
            np.arange(len(given.y)),
            test_size=fraction,
            random_state=random_state,
            stratify=self._strata(given.y, fraction),
        )
        # in the order in which they lie: what is read from a file is read forwards
        return given[np.sort(training)], given[np.sort(held_out)]

    @torch.no_grad()
    def _outputs(self, module: torch.nn.Module, x: Inputs) -> Tensor:
        module.eval()
        batch_size = self._rows_at_a_time(len(x))
        return torch.cat([module(x[rows]) for rows in batches(len(x), batch_size)])

    @plain_torch()
    def _predict_outputs(self, X: Any) -> Tensor:
        """Return the outputs of ``module_``, one column per output."""
        samples = self._known_samples(X)
        outputs = self._outputs(self.module_, self._inputs(samples, self.module_))
        return outputs.reshape(len(outputs), -1)


def _as_array(rows: Inputs) -> NDArray:
    return to_array(rows) if isinstance(rows, Tensor) else rows.rows.source.arrays


def _is_several(split: object) -> bool:
    return not isinstance(split, (str, Integral))


def _label_tensor(encoded: NDArray, task: str, dtype: torch.dtype) -> Tensor:
    return to_tensor(encoded, dtype if task == "regression" else torch.int64)


def _epochs(history: list[dict[str, Any]]) -> int:
    """Count epochs and sweeps, trials left out; entry 0 is the network before training."""
    return sum(
        1
        for entry in history
        if not entry.get("trial") and entry.get("epoch", entry.get("sweep", 0)) > 0
    )


def _draw_seed(random_state: np.random.RandomState) -> int:
    """Draw a seed for torch from scikit-learn's random state."""
    return int(random_state.randint(np.iinfo(np.int32).max))
