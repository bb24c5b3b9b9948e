"""Training without learning rates: each layer is refitted to the output that it should have had."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain, Site, affine_sites, reasons_against
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import nearest_acceptable
from featprop_sklearn.training.batch_norm import reestimate_batch_norm
from featprop_sklearn.training.component import Component, Labelled, TrainingResult
from featprop_sklearn.training.design_rows import (
    add_to_weights,
    design_rows,
    output_rows,
    row_size,
    weight_rows,
)
from featprop_sklearn.training.gram import GramSums, solve_ridge
from featprop_sklearn.training.head import is_head, refit_head
from featprop_sklearn.training.losses import mean_task_loss
from featprop_sklearn.training.waking import wake_dead_units

__all__ = ["ClosedFormTrainer"]

#: numbers in the design rows that are formed at a time
ROW_BUDGET = 4_000_000


class ClosedFormTrainer(BaseEstimator):
    """Refit the affine layers up to a split, one after the other, by least squares.

    One sweep goes forward through the layers. Each asks for the nearest output of its own
    that the rest of the network turns into the label (the joint targets), and takes the
    weights that give it best: ridge regression centred on the present weights, its strength
    chosen by generalised cross-validation. Where the split is the network's output, the last
    layer of a classifier is refitted by logistic regression before and after each sweep. No
    learning rate, no epochs.

    Linear, convolution and transposed convolution layers are refitted; the statistics of
    BatchNorm are re-estimated first, unless that raises the loss; others stay as they are. A
    sweep that worsens the held-out loss (without a hold-out: the training loss) is taken back,
    and ends the training.

    Parameters
    ----------
    sweeps : int, default=3
        Sweeps at most, >= 0.
    ridge : float or "auto", default="auto"
        Strength of the ridge regressions in units of the largest eigenvalue of a layer's
        Gram matrix; "auto" cross-validates.
    C : float, default=0.1
        Inverse strength of the last layer's logistic regression, on standardised features.
    multiples : tuple of float, default=(1.0, 3.0, 8.0)
        Margins tried where the estimator's is "auto", in units of the spread of the logits;
        the best on held-out data is kept. Without a hold-out 3.0 is taken, or the first.
    tol : float, default=1e-3
        The sweeps end where the loss improves by less than this share.

    Notes
    -----
    Sums over samples are all that a layer's refit needs: they are formed batch by batch, in
    parallel with ``n_jobs``, and memory does not grow with the samples.

    Examples
    --------
    >>> from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier
    >>> estimator = FeatureBackpropClassifier(trainer=ClosedFormTrainer(sweeps=5))
    >>> estimator.set_params(trainer__ridge=1e-3).trainer.ridge
    0.001
    """

    #: goes from label to layer by itself; other targets would be another method
    propagations = ("joint",)

    def __init__(
        self,
        *,
        sweeps: int = 3,
        ridge: float | str = "auto",
        C: float = 0.1,
        multiples: Sequence[float] = (1.0, 3.0, 8.0),
        tol: float = 1e-3,
    ) -> None:
        self.sweeps = sweeps
        self.ridge = ridge
        self.C = C
        self.multiples = multiples
        self.tol = tol

    def check(self) -> None:
        """Refuse parameters outside their range.

        Raises
        ------
        ValueError
            Naming the parameter, what is allowed and what came.
        """
        if not isinstance(self.sweeps, Integral) or self.sweeps < 0:
            raise ValueError(f"sweeps must be an integer >= 0; got {self.sweeps!r}.")
        if self.ridge != "auto" and not _is_positive(self.ridge, zero=True):
            raise ValueError(f"ridge must be 'auto' or a number >= 0; got {self.ridge!r}.")
        if not _is_positive(self.C):
            raise ValueError(f"C must be a number > 0; got {self.C!r}.")
        multiples = self.multiples
        if not isinstance(multiples, Sequence) or not all(map(_is_positive, multiples)):
            raise ValueError(f"multiples must be a sequence of numbers > 0; got {multiples!r}.")
        if not len(multiples):
            raise ValueError("multiples must hold at least one number; got none.")
        if not _is_positive(self.tol, zero=True):
            raise ValueError(f"tol must be a number >= 0; got {self.tol!r}.")

    def train(
        self,
        component: Component,
        *,
        batch_size: int,
        seed: int = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> TrainingResult:
        """Train a private copy of a component.

        Parameters
        ----------
        component : Component
            What to train, on what; left as it is. Its targets are not needed.
        batch_size : int
            Rows worked on at a time.
        seed : int
            Not needed: nothing is drawn.
        n_jobs : int, optional
            Batches worked on at a time, as in joblib.
        verbose : int
            1 prints a line per sweep.

        Returns
        -------
        TrainingResult
            The trained state and the history: the layers ``refitted`` in each sweep, and before
            the first what was ``not_refitted``, and why. Ctrl-C ends the training, not the
            program.
        """
        self.check()
        follows = component.output_targets.multiple is not None
        multiples: list[float | None] = list(self.multiples) if follows else [None]
        if component.validation is None:
            multiples = [3.0 if 3.0 in multiples else multiples[0]]
        best: tuple[float, _Sweeper] | None = None
        history: list[dict[str, Any]] = []
        interrupted = False
        for multiple in multiples:
            sweeper = _Sweeper(self, component.private(), batch_size, n_jobs, multiple)
            loss, interrupted = sweeper.run(verbose)
            if best is None or loss < best[0]:
                best, history = (loss, sweeper), sweeper.history
            if interrupted:
                break
        assert best is not None
        return TrainingResult(best[1].network.states(), history, interrupted)

    def train_chunk(
        self,
        component: Component,
        seen: dict[str, Any],
        *,
        batch_size: int,
        n_jobs: int | None = None,
        **_: Any,
    ) -> TrainingResult:
        """Add a chunk of data to what earlier chunks said, and refit every layer to all of it.

        The targets of a chunk are those under the network that it meets; each layer is
        refitted around the weights that it had before the first chunk.

        Parameters
        ----------
        component : Component
            The network as the earlier chunks left it, and the new chunk.
        seen : dict
            The sums so far; the chunk's are added. Empty before the first chunk.
        batch_size, n_jobs
            As in :meth:`train`.
        """
        self.check()
        sweeper = _Sweeper(self, component.private(), batch_size, n_jobs, None)
        started = time.perf_counter()
        for site in sweeper.sites:
            present = weight_rows(site.layer)
            base, sums = seen.get(site.name, (present, None))
            new = sweeper.sums(site).shifted(base - present)
            sums = new if sums is None else sums + new
            seen[site.name] = (base, sums)
            change = solve_ridge(sums, self.ridge)[0]
            add_to_weights(site.layer, base + change - present)
        entry: dict[str, Any] = {
            "sweep": 1,
            "seconds": time.perf_counter() - started,
            "refitted": sweeper.refitted,
        }
        return TrainingResult(sweeper.network.states(), [{"split": component.split, **entry}])


class _Sweeper:
    """The sweeps over one private component, with one margin."""

    def __init__(
        self,
        trainer: ClosedFormTrainer,
        own: Component,
        batch_size: int,
        n_jobs: int | None,
        multiple: float | None,
    ) -> None:
        self.trainer = trainer
        self.own = own
        self.network = own.network()
        self.chain = Chain((*own.stages, *own.after))
        self.batch_size = len(own.data) if batch_size == -1 else batch_size
        self.n_jobs = n_jobs
        self.multiple = multiple
        self.network.eval()
        self.sites = affine_sites(own.stages, own.data.inputs[:8])
        self.head = self._find_head()
        self.targets = own.output_targets
        self.history: list[dict[str, Any]] = []

    def run(self, verbose: int = 0) -> tuple[float, bool]:
        """Sweep while it helps; return the loss of the state kept, and if it was interrupted."""
        states, loss = self.network.states(), self._loss()
        others = reasons_against(self.own.stages, self.own.data.inputs[:8])
        self._note(0, loss, 0.0, refitted=[], not_refitted=others)
        try:
            states, loss = self._batch_norm(states, loss)
            for sweep in range(1, self.trainer.sweeps + 1):
                started = time.perf_counter()
                ridges = self._sweep(first=sweep == 1)
                new = self._loss()
                seconds = time.perf_counter() - started
                self._note(sweep, new, seconds, refitted=self.refitted, ridge=ridges)
                if verbose:
                    print(f"{self.own.split}: sweep {sweep}, loss {loss:.6g} -> {new:.6g}")
                if not new < loss:
                    self.network.restore(states)
                    break
                gain, loss, states = loss - new, new, self.network.states()
                if gain < self.trainer.tol * abs(loss):
                    break
        except KeyboardInterrupt:
            self.network.restore(states)
            return loss, True
        return loss, False

    def _batch_norm(
        self, states: list[Mapping[str, Any]], loss: float
    ) -> tuple[list[Mapping[str, Any]], float]:
        """Take the statistics of the new data where there are any, and they do no harm."""
        data = self.own.data
        if not reestimate_batch_norm(self.network, data.inputs, self.batch_size, data.weights):
            return states, loss
        new = self._loss()
        if new <= loss:
            return self.network.states(), new
        self.network.restore(states)
        return states, loss

    def _sweep(self, first: bool) -> dict[str, float]:
        if first:
            data = self.own.data
            wake_dead_units(self.own.stages, data.inputs, self.batch_size, weights=data.weights)
            self._refit_head()
        ridges = {}
        self._follow_logits()
        for site in self.sites:
            if site is not self.head:
                change, ridges[site.name] = solve_ridge(self.sums(site), self.trainer.ridge)
                add_to_weights(site.layer, change)
        self._refit_head()
        return ridges

    @property
    def refitted(self) -> list[str]:
        """Names of the layers that a sweep refits."""
        return [site.name for site in self.sites]

    def sums(self, site: Site) -> GramSums:
        """Sum up what a layer gets and what it lacks, over all samples."""
        data = self.own.data
        step = self._rows_at_a_time(site)
        parts = Parallel(n_jobs=self.n_jobs, return_as="generator")(
            delayed(_batch_sums)(self.chain, site, data[rows], self.targets)
            for rows in batches(len(data), step)
        )
        total: GramSums | None = None
        for part in parts:
            total = part if total is None else total + part
        assert total is not None
        return total

    def _find_head(self) -> Site | None:
        if len(self.own.after) or not self.sites:
            return None
        site = self.sites[-1]
        x = self.chain[: site.stage](self.own.data.inputs[:8])
        found = is_head(site, self.chain, x, self.own.output_targets)
        return site if found else None

    @torch.no_grad()
    def _refit_head(self) -> None:
        if self.head is None:
            return
        data = self.own.data
        before = self.chain[: self.head.stage]
        features = torch.cat(
            [
                self.head.read(self.chain, before(data.inputs[rows]))[0]
                for rows in batches(len(data), self.batch_size)
            ]
        )
        layer: Any = self.head.layer
        refit_head(layer, features, data.y, data.weights, self.targets, self.trainer.C)

    @torch.no_grad()
    def _follow_logits(self) -> None:
        """Set the margin on the scale of the present logits."""
        data = self.own.data
        outputs = torch.cat(
            [self.chain(data.inputs[rows]) for rows in batches(len(data), self.batch_size)]
        )
        self.targets = self.targets.rescaled(outputs, data.weights, self.multiple)

    def _loss(self) -> float:
        data = self.own.data if self.own.validation is None else self.own.validation
        return mean_task_loss(self.chain, data, self.own.output_targets, self.batch_size)

    @torch.no_grad()
    def _rows_at_a_time(self, site: Site) -> int:
        x = self.chain[: site.stage](self.own.data.inputs[:1])
        size = row_size(site.layer, site.read(self.chain, x)[1])
        return max(1, min(self.batch_size, ROW_BUDGET // max(size, 1)))

    def _note(self, sweep: int, loss: float, seconds: float, **more: Any) -> None:
        name = "train_loss" if self.own.validation is None else "valid_loss"
        entry = {"split": self.own.split, "sweep": sweep, name: loss, "seconds": seconds}
        self.history.append({**entry, **more})


@torch.no_grad()
def _batch_sums(
    chain: Chain, site: Site, data: Labelled, output_targets: OutputTargets
) -> GramSums:
    """One batch: the layer's inputs, and what its outputs lack of the joint targets."""
    x = chain[: site.stage](data.inputs)
    inputs, outputs = site.read(chain, x)
    tail = site.tail(chain, x)
    every = torch.arange(len(x), device=x.device)
    found = nearest_acceptable(
        tail, outputs, tail(outputs, every), data.y, output_targets, max_steps=1, refinements=0
    )
    lacking = output_rows(site.layer, found.targets - outputs)
    return GramSums.of(design_rows(site.layer, inputs), lacking, data.weights)


def _is_positive(value: object, *, zero: bool = False) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and np.isfinite(value) and (value > 0 or (zero and value == 0))  # type: ignore
