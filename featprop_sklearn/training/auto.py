"""The default trainer: closed form first, then a polish by gradients, each if it helps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain
from featprop_sklearn.training.batch_norm import reestimate_batch_norm
from featprop_sklearn.training.closed_form import ClosedFormTrainer
from featprop_sklearn.training.component import Component, Labelled, TrainingResult
from featprop_sklearn.training.gradient import GradientTrainer
from featprop_sklearn.training.losses import task_losses

__all__ = ["AutoTrainer"]

#: the polish takes batches of this share of the rows, within limits
BATCHES_AN_EPOCH = 14
BATCH_LIMITS = (32, 256)
#: and so many steps at least, on few rows
LEAST_STEPS = 300


class AutoTrainer(BaseEstimator):
    """Train the stages up to a split without anything to tune.

    Three steps: BatchNorm statistics are re-estimated on the new data; a closed-form sweep
    refits every affine layer (see :class:`ClosedFormTrainer`); a polish by gradients follows
    (see :class:`GradientTrainer`). Where there is held-out data each step is first tried
    without it, and dropped where it makes more errors there (of a regression: larger ones) than
    chance would; the steps that are left are then run on all rows, the held-out ones included.
    Without held-out data all three steps are run.

    Parameters
    ----------
    closed_form : ClosedFormTrainer, default=None
        The sweeps; None is one sweep with margins of 3.
    polish : GradientTrainer, default=None
        None is 30 epochs of AdamW, one cycle up to 2e-2, weight decay 0.3, label smoothing
        0.1, on the labels alone.
    gentle : GradientTrainer, default=None
        The polish that is tried where the first one does harm; None is the same at a
        twentieth of the rate and a tenth of the weight decay.
    trial_epochs : int, default=10
        Epochs of the polish while it is tried.

    Examples
    --------
    >>> from featprop_sklearn import AutoTrainer, FeatureBackpropClassifier, GradientTrainer
    >>> estimator = FeatureBackpropClassifier(trainer=AutoTrainer(polish=GradientTrainer(lr=1e-3)))
    """

    #: its sweeps go from label to layer by themselves
    propagations = ("joint",)

    def __init__(
        self,
        *,
        closed_form: ClosedFormTrainer | None = None,
        polish: GradientTrainer | None = None,
        gentle: GradientTrainer | None = None,
        trial_epochs: int = 10,
    ) -> None:
        self.closed_form = closed_form
        self.polish = polish
        self.gentle = gentle
        self.trial_epochs = trial_epochs

    def check(self) -> None:
        """Refuse parameters outside their range.

        Raises
        ------
        ValueError, TypeError
            Naming the parameter, what is allowed and what came.
        """
        for name, kind in (
            ("closed_form", ClosedFormTrainer),
            ("polish", GradientTrainer),
            ("gentle", GradientTrainer),
        ):
            part = getattr(self, name)
            if part is not None and not isinstance(part, kind):
                raise TypeError(f"{name} must be None or a {kind.__name__}; got {part!r}.")
            if part is not None:
                part.check()
        GradientTrainer(max_epochs=self.trial_epochs).check()

    def train(
        self,
        component: Component,
        *,
        batch_size: int,
        seed: int,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> TrainingResult:
        """Train a private copy of a component.

        Parameters
        ----------
        component : Component
            What to train, on what; left as it is.
        batch_size : int
            Rows worked on at a time; -1 for all, in the polish too, whose batches else follow
            from the number of rows.
        seed : int
            Of shuffling and dropout.
        n_jobs : int, optional
            Batches of the sweeps worked on at a time.
        verbose : int
            1 prints a line per sweep and epoch.

        Returns
        -------
        TrainingResult
            The trained state and the history, whose entries say in which ``step`` they were
            made. Ctrl-C ends the training, not the program.
        """
        self.check()
        run = _Run(self, batch_size, seed, n_jobs, verbose)
        steps = [run.batch_norm, run.sweeps, run.polish]
        if component.validation is not None:
            steps = run.try_out(component)
            component = _with_all_rows(component)
        return run.apply(component, steps)

    def train_chunk(
        self, component: Component, seen: dict[str, Any], *, batch_size: int, seed: int, **more: Any
    ) -> TrainingResult:
        """Refit in closed form to a chunk and all earlier ones, as ClosedFormTrainer does.

        Parameters
        ----------
        component, seen, batch_size, seed
            As in :meth:`ClosedFormTrainer.train_chunk`.
        """
        self.check()
        trainer = self._closed_form()
        return trainer.train_chunk(component, seen, batch_size=batch_size, seed=seed, **more)

    def _closed_form(self) -> ClosedFormTrainer:
        if self.closed_form is None:
            return ClosedFormTrainer(sweeps=1, multiples=(3.0,))
        return self.closed_form

    def _polish(self) -> GradientTrainer:
        if self.polish is None:
            return GradientTrainer(
                alpha=0.0,
                max_epochs=30,
                lr=2e-2,
                weight_decay=0.3,
                schedule="one_cycle",
                label_smoothing=0.1,
            )
        return self.polish

    def _gentle(self) -> GradientTrainer:
        if self.gentle is None:
            polish = self._polish()
            return clone(polish).set_params(
                lr=polish.lr / 20, weight_decay=polish.weight_decay / 10
            )
        return self.gentle


Step = Callable[[Component, bool], TrainingResult]


class _Run:
    """The steps, with what they need besides a component."""

    def __init__(
        self, trainer: AutoTrainer, batch_size: int, seed: int, n_jobs: int | None, verbose: int
    ) -> None:
        self.trainer = trainer
        self.batch_size = batch_size
        self.more: dict[str, Any] = {"seed": seed, "n_jobs": n_jobs, "verbose": verbose}
        self.history: list[dict[str, Any]] = []
        self.interrupted = False

    def batch_norm(self, component: Component, trial: bool) -> TrainingResult:
        network = component.network()
        size = len(component.data) if self.batch_size == -1 else self.batch_size
        reestimate_batch_norm(network, component.data.inputs, size)
        return TrainingResult(network.states(), [])

    def sweeps(self, component: Component, trial: bool) -> TrainingResult:
        trainer = self.trainer._closed_form()
        return trainer.train(component, batch_size=self.batch_size, **self.more)

    def polish(self, component: Component, trial: bool) -> TrainingResult:
        return self._descend(self.trainer._polish(), component, trial)

    def gentle(self, component: Component, trial: bool) -> TrainingResult:
        return self._descend(self.trainer._gentle(), component, trial)

    def _descend(self, trainer: GradientTrainer, own: Component, trial: bool) -> TrainingResult:
        n_samples = len(own.data)
        low, high = BATCH_LIMITS
        size = min(max(-(-n_samples // BATCHES_AN_EPOCH), low), high)
        if self.batch_size == -1 or size >= n_samples:
            size = n_samples
        epochs = trainer.max_epochs
        if self.batch_size != -1 and epochs:
            epochs = max(epochs, math.ceil(LEAST_STEPS * size / n_samples))
        if trial:
            epochs = min(epochs, math.ceil(epochs * self.trainer.trial_epochs / 30))
        trainer = clone(trainer).set_params(max_epochs=epochs)
        return trainer.train(
            replace(own, validation=None), batch_size=-1 if size == n_samples else size, **self.more
        )

    def try_out(self, component: Component) -> list[Step]:
        """Run the steps without the held-out rows; return those that help on them."""
        own = component.private()
        kept: list[Step] = []
        assert own.validation is not None
        best = self._errors(own)
        for step in (self.batch_norm, self.sweeps, self.polish, self.gentle):
            if step == self.gentle and self.polish in kept:
                continue
            if self.interrupted:
                break
            before = own.network().states()
            result = step(own, True)
            result.load_into(own.stages)
            self._note(step, result, trial=True)
            errors = self._errors(own)
            if _worse(errors - best, own.validation.weights):
                TrainingResult(before, []).load_into(own.stages)
            else:
                kept.append(step)
                best = errors
        return kept

    def apply(self, component: Component, steps: list[Step]) -> TrainingResult:
        """Run steps one after the other, each from where the last one ended."""
        own = component.private()
        for step in steps:
            if self.interrupted:
                break
            result = step(own, False)
            result.load_into(own.stages)
            self._note(step, result, trial=False)
        return TrainingResult(own.network().states(), self.history, self.interrupted)

    def _note(self, step: Step, result: TrainingResult, *, trial: bool) -> None:
        self.interrupted = self.interrupted or result.interrupted
        name = step.__name__
        self.history += [{**entry, "step": name, "trial": trial} for entry in result.history]

    @torch.no_grad()
    def _errors(self, own: Component) -> Tensor:
        """Error of each held-out sample: 0 or 1 of a class, squared of a value."""
        assert own.validation is not None
        own.network().eval()
        chain, targets = Chain((*own.stages, *own.after)), own.output_targets
        size = len(own.validation) if self.batch_size == -1 else self.batch_size
        parts = []
        for rows in batches(len(own.validation), size):
            part = own.validation[rows]
            output = chain(part.inputs)
            if targets.task == "regression":
                parts.append(task_losses(output, part.y, targets).double())
            else:
                parts.append((~targets.correct(output, part.y)).double())
        return torch.cat(parts).nan_to_num(nan=torch.inf)


def _worse(more: Tensor, weights: Tensor) -> bool:
    """Return whether errors grew beyond chance: their mean by more than its standard error."""
    share = weights.double() / weights.double().sum()
    mean = share @ more
    error = (share.square() @ (more - mean).square()).sqrt()
    return not bool(mean <= error)


def _with_all_rows(component: Component) -> Component:
    """Give the held-out rows back to training."""
    data, held_out = component.data, component.validation
    assert held_out is not None
    pairs = ((getattr(data, name), getattr(held_out, name)) for name in ("inputs", "y", "weights"))
    return replace(
        component,
        data=Labelled(*(torch.cat(pair) for pair in pairs)),
        targets=None,
        validation=None,
    )
