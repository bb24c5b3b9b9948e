"""The default trainer: closed form first, then a polish by gradients, each if it helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from sklearn.base import BaseEstimator, clone

from featprop_sklearn.networks import Chain
from featprop_sklearn.training.batch_norm import reestimate_batch_norm
from featprop_sklearn.training.closed_form import ClosedFormTrainer
from featprop_sklearn.training.component import Component, Labelled, TrainingResult
from featprop_sklearn.training.gradient import GradientTrainer
from featprop_sklearn.training.judge import Judge

__all__ = ["AutoTrainer"]

#: layers that a sweep refits, at most: each costs one or two epochs, and the polish has 30
MOST_LAYERS = 15
#: the polish takes batches of this share of the rows, within limits
BATCHES_AN_EPOCH = 10
BATCH_LIMITS = (32, 256)
#: steps at least, on few rows, and at most, on many, where that leaves enough epochs
STEP_LIMITS = (300, 600)
LEAST_EPOCHS = 10
#: steps at least where all rows are one batch
WHOLE_BATCH_STEPS = 100
#: rows from which a trial is cut short; on fewer, a short one would not show overfitting
SHORT_TRIALS_FROM = 500
#: and steps of a short trial, at most, where that leaves enough epochs: one alone is clearly worse
#: on thousands of held-out rows than what ten make of it
TRIAL_STEPS = 120
LEAST_TRIAL_EPOCHS = 3


class AutoTrainer(BaseEstimator):
    """Train the stages up to a split without anything to tune.

    Three steps: BatchNorm statistics are re-estimated on the new data; a closed-form sweep
    refits every affine layer (see :class:`ClosedFormTrainer`); a polish by gradients follows
    (see :class:`GradientTrainer`), and new statistics. Where there is held-out data, each step
    is first tried without it, and dropped where it makes more errors there (for a regression:
    larger ones) than chance would. What is kept is then finished on all rows, the held-out ones
    included. Without held-out data all three steps are run.

    Parameters
    ----------
    closed_form : ClosedFormTrainer, default=None
        The sweeps; None is one sweep, over the 15 layers of most promise where there are more
        (see ``max_layers`` there), with margins of 8 times the spread of the logits.
    polish : GradientTrainer, sequence of them, or None, default=None
        Polishes to choose from on held-out data: the first, unless a later one is better
        beyond chance. They train on the labels alone, so ``alpha`` must be 0. None is AdamW
        with one cycle of the learning rate: for classes up to 2e-2 with weight decay 0.2 and
        label smoothing 0.1, for values up to 1e-2 with weight decay 4 or 1.
    trial_epochs : int, default=8
        Epochs of a polish while it is tried, at most: three at least where more would make more
        than 120 steps, and all of them below 500 rows.

    Notes
    -----
    A polish takes batches of a tenth of the rows, but 32 to 256 of them, whatever the
    estimator's ``batch_size`` (but all rows at once for the default network), and its
    ``max_epochs`` are raised or lowered to make 300 to 600 steps. Where every
    polish does harm, one at a twentieth of the rate and a tenth of the weight decay is tried.
    Without held-out rows that is a polish after which the network answers its own training rows
    worse than before, and no better than one answer to all would.

    Examples
    --------
    >>> from featprop_sklearn import AutoTrainer, FeatureBackpropClassifier, GradientTrainer
    >>> polish = GradientTrainer(alpha=0, lr=1e-3, schedule="one_cycle")
    >>> estimator = FeatureBackpropClassifier(trainer=AutoTrainer(polish=polish))
    """

    #: its sweeps go from label to layer by themselves
    propagations = ("joint",)
    #: whether it is to be given them
    needs_targets = False

    def __init__(
        self,
        *,
        closed_form: ClosedFormTrainer | None = None,
        polish: GradientTrainer | Sequence[GradientTrainer] | None = None,
        trial_epochs: int = 8,
    ) -> None:
        self.closed_form = closed_form
        self.polish = polish
        self.trial_epochs = trial_epochs

    def check(self) -> None:
        """Refuse parameters outside their range.

        Raises
        ------
        ValueError, TypeError
            Naming the parameter, what is allowed and what came.
        """
        if self.closed_form is not None:
            if not isinstance(self.closed_form, ClosedFormTrainer):
                raise TypeError(
                    f"closed_form must be None or a ClosedFormTrainer; got {self.closed_form!r}."
                )
            self.closed_form.check()
        for polish in self._polishes("multiclass"):
            if not isinstance(polish, GradientTrainer):
                raise TypeError(f"polish must be None or GradientTrainers; got {polish!r}.")
            polish.check()
            if polish.alpha != 0 or polish.feature_only:
                raise ValueError(
                    "polish trains on the labels alone: its alpha must be 0 and feature_only "
                    f"False; got {polish!r}. To train on feature targets use trainer='gradient'."
                )
        if not isinstance(self.trial_epochs, Integral) or self.trial_epochs < 1:
            raise ValueError(f"trial_epochs must be an integer >= 1; got {self.trial_epochs!r}.")

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
            Rows worked on at a time; -1 for all, in the polish too.
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
            made, and whether it was a ``trial``. Ctrl-C ends the training, not the program.
        """
        self.check()
        steps = _Steps(
            self._closed_form(),
            self._polishes(component.output_targets.task),
            int(self.trial_epochs),
            batch_size,
            {"seed": seed, "n_jobs": n_jobs, "verbose": verbose},
        )
        own = replace(component.private(), targets=None)
        if own.validation is None:
            steps.run_all(own)
        else:
            steps.run_what_helps(own)
        return TrainingResult(own.network().states(), steps.history, steps.interrupted)

    def train_chunk(
        self, component: Component, seen: dict[str, Any], *, batch_size: int, **more: Any
    ) -> TrainingResult:
        """Refit in closed form to a chunk and all earlier ones, as ClosedFormTrainer does.

        Parameters
        ----------
        component, seen, batch_size
            As in :meth:`ClosedFormTrainer.train_chunk`.
        """
        self.check()
        return self._closed_form().train_chunk(component, seen, batch_size=batch_size, **more)

    def _closed_form(self) -> ClosedFormTrainer:
        if self.closed_form is None:
            return ClosedFormTrainer(sweeps=1, multiples=(8.0,), max_layers=MOST_LAYERS)
        return self.closed_form

    def _polishes(self, task: str) -> list[GradientTrainer]:
        if isinstance(self.polish, Sequence) and not isinstance(self.polish, str):
            return list(self.polish)
        if self.polish is not None:
            return [self.polish]
        cycle = GradientTrainer(alpha=0.0, max_epochs=30, schedule="one_cycle")
        if task != "regression":
            return [cycle.set_params(lr=2e-2, weight_decay=0.2, label_smoothing=0.1)]
        # how much of a regression is noise decides, and only held-out data knows
        decays = (4.0, 1.0)
        return [clone(cycle).set_params(lr=1e-2, weight_decay=decay) for decay in decays]


class _Steps:
    """The steps on one private component, which they change."""

    def __init__(
        self,
        closed_form: ClosedFormTrainer,
        polishes: list[GradientTrainer],
        trial_epochs: int,
        batch_size: int,
        more: dict[str, Any],
    ) -> None:
        self.closed_form = closed_form
        self.polishes = polishes
        self.trial_epochs = trial_epochs
        self.batch_size = batch_size
        self.more = more
        self.history: list[dict[str, Any]] = []
        self.interrupted = False

    def run_all(self, own: Component) -> None:
        """Run every step, for want of data to judge by; a polish that ruins is taken back."""
        self._batch_norm(own)
        self._sweep(own)
        swept = own.network().states()
        judge = self._judge(own, own.data)
        for polish in (self.polishes[0], _gentle(self.polishes[0])) if self.polishes else ():
            earlier = len(self.history)
            self._polish(own, polish)
            if self.interrupted or not judge.calls_ruined():
                return
            own.network().restore(swept)
            for entry in self.history[earlier:]:
                entry["trial"] = True

    def run_what_helps(self, own: Component) -> None:
        """Try the steps without the held-out rows, and finish on all rows what helped."""
        start = own.network().states()
        assert own.validation is not None
        judge = self._judge(own, own.validation)
        self._batch_norm(own)
        with_batch_norm = judge.accepts()
        swept = own.network().states() if with_batch_norm else start
        own.network().restore(swept)
        self._sweep(own, trial=True)
        with_sweeps = judge.accepts()
        swept = own.network().states() if with_sweeps else swept
        polish = self._choose_polish(own, judge, swept)
        everything = _with_all_rows(own)
        if polish is not None:
            # the sweeps' rows are enough: the polish goes on from them and sees all
            own.network().restore(swept)
            self._polish(everything, polish)
            return
        own.network().restore(start)
        if with_batch_norm:
            self._batch_norm(everything)
        if with_sweeps:
            self._sweep(everything)

    def _judge(self, own: Component, data: Labelled) -> Judge:
        whole = Chain((*own.stages, *own.after))
        return Judge(whole, own.output_targets, data, self.batch_size)

    def _choose_polish(self, own: Component, judge: Judge, start: Any) -> GradientTrainer | None:
        best: GradientTrainer | None = None
        for polish in self.polishes:
            if self._try_polish(own, polish, start) and judge.accepts(clearly=bool(best)):
                best = polish
        if best is None and self.polishes:
            gentle = _gentle(self.polishes[0])
            if self._try_polish(own, gentle, start) and judge.accepts():
                best = gentle
        return best

    def _try_polish(self, own: Component, polish: GradientTrainer, start: Any) -> bool:
        """Polish for a few epochs; return whether it came to an end."""
        own.network().restore(start)
        self._polish(own, polish, trial=True)
        return not self.interrupted

    def _batch_norm(self, own: Component) -> None:
        size = len(own.data) if self.batch_size == -1 else self.batch_size
        reestimate_batch_norm(own.network(), own.data.inputs, size, own.data.weights)

    def _sweep(self, own: Component, *, trial: bool = False) -> None:
        if self.interrupted:
            return
        result = self.closed_form.train(own, batch_size=self.batch_size, **self.more)
        self._take(own, result, "sweeps", trial)

    def _polish(self, own: Component, polish: GradientTrainer, *, trial: bool = False) -> None:
        if self.interrupted:
            return
        held_out = 0 if own.validation is None else len(own.validation)
        size, epochs = self._lengths(len(own.data) + held_out, int(polish.max_epochs))
        decay = polish.weight_decay
        if trial and len(own.data) >= SHORT_TRIALS_FROM:
            short = self._trial_epochs(len(own.data), size, epochs)
            # as much decay as there will be in all, or its effect would not show
            decay, epochs = decay * epochs / max(short, 1), short
        result = (
            clone(polish)
            .set_params(max_epochs=epochs, weight_decay=decay)
            .train(replace(own, validation=None), batch_size=size, **self.more)
        )
        self._take(own, result, "polish", trial)
        # running averages follow the weights with a lag, with momentum=None hardly at all
        self._batch_norm(own)

    def _lengths(self, n_samples: int, epochs: int) -> tuple[int, int]:
        """Rows a batch, and epochs."""
        if self.batch_size == -1 or not epochs:
            return -1, epochs and max(epochs, WHOLE_BATCH_STEPS)
        low, high = BATCH_LIMITS
        size = min(max(-(-n_samples // BATCHES_AN_EPOCH), low), high, n_samples)
        an_epoch = -(-n_samples // size)
        fewest, most = (math.ceil(steps / an_epoch) for steps in STEP_LIMITS)
        return size, max(fewest, min(epochs, max(most, LEAST_EPOCHS)))

    def _trial_epochs(self, n_samples: int, size: int, epochs: int) -> int:
        an_epoch = 1 if size == -1 else -(-n_samples // size)
        return min(epochs, self.trial_epochs, max(LEAST_TRIAL_EPOCHS, TRIAL_STEPS // an_epoch))

    def _take(self, own: Component, result: TrainingResult, step: str, trial: bool) -> None:
        result.load_into(own.stages)
        self.interrupted = self.interrupted or result.interrupted
        self.history += [{**entry, "step": step, "trial": trial} for entry in result.history]


def _gentle(polish: GradientTrainer) -> GradientTrainer:
    return clone(polish).set_params(lr=polish.lr / 20, weight_decay=polish.weight_decay / 10)


def _with_all_rows(component: Component) -> Component:
    """Give the held-out rows back to training."""
    data, held_out = component.data, component.validation
    assert held_out is not None
    return replace(component, data=data.join(held_out), validation=None)
