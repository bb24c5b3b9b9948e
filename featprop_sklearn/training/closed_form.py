"""Training without learning rates: each layer is refitted to the output that it should have had."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from featprop_sklearn.training.component import Component, TrainingResult
from featprop_sklearn.training.design_rows import weight_rows
from featprop_sklearn.training.gram import solve_ridge
from featprop_sklearn.training.sweeper import Sweeper

__all__ = ["ClosedFormTrainer"]


class ClosedFormTrainer(BaseEstimator):
    """Refit the affine layers up to a split, one after the other, by least squares.

    One sweep goes forward through the layers. Each asks for the nearest output of its own
    that the rest of the network turns into the label (the joint targets), and takes the
    weights that give it best: ridge regression centred on the present weights, its strength
    chosen by generalised cross-validation. A change that would raise the training loss is
    halved until it lowers it, or dropped. Where the split is the network's output, the last
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
    max_layers : int, default=None
        Layers that a sweep refits by least squares, at most, >= 1: those whose inputs explain
        the largest shares of what the loss asks of their outputs. The logistic regression
        comes on top; None refits all.

    Notes
    -----
    Sums over samples are all that a layer's refit needs: they are formed batch by batch, in
    parallel with ``n_jobs``, and memory does not grow with the samples.

    A refit of one layer costs up to two epochs of AdamW on the same data, so ``max_layers`` is
    for deep networks. Which layers to take is decided once, before the first sweep: the gradient
    of the loss at each layer's outputs is regressed on its inputs, and the layers of the largest
    explained shares are taken, those nearest to the split where shares are alike. That costs one
    run forward and backward over 256 samples at most, for all layers together, and for each a
    ridge regression on 1024 to 4096 rows of them (measured: docs/big_network.md).

    Examples
    --------
    >>> from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier
    >>> estimator = FeatureBackpropClassifier(trainer=ClosedFormTrainer(sweeps=5))
    >>> estimator.set_params(trainer__ridge=1e-3).trainer.ridge
    0.001
    """

    #: goes from label to layer by itself; other targets would be another method
    propagations = ("joint",)
    #: whether it is to be given them
    needs_targets = False

    def __init__(
        self,
        *,
        sweeps: int = 3,
        ridge: float | str = "auto",
        C: float = 0.1,
        multiples: Sequence[float] = (1.0, 3.0, 8.0),
        tol: float = 1e-3,
        max_layers: int | None = None,
    ) -> None:
        self.sweeps = sweeps
        self.ridge = ridge
        self.C = C
        self.multiples = multiples
        self.tol = tol
        self.max_layers = max_layers

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
        if self.max_layers is not None and not _is_count(self.max_layers):
            raise ValueError(
                f"max_layers must be None or an integer >= 1; got {self.max_layers!r}."
            )

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
            The trained state and the history: the layers ``refitted`` in each sweep and those
            ``left_out`` because of ``max_layers``, and before the first what was
            ``not_refitted``, and why. Ctrl-C ends the training, not the program.
        """
        self.check()
        follows = component.output_targets.multiple is not None
        multiples: list[float | None] = list(self.multiples) if follows else [None]
        if component.validation is None:
            multiples = [3.0 if 3.0 in multiples else multiples[0]]
        best: tuple[float, Sweeper] | None = None
        history: list[dict[str, Any]] = []
        interrupted = False
        chosen: Collection[str] = ()  # which layers to refit does not depend on the margin
        for multiple in multiples:
            sweeper = self._sweeper(component, batch_size, n_jobs, multiple, chosen)
            loss, interrupted = sweeper.run(int(self.sweeps), self.tol, verbose)
            chosen = sweeper.chosen
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
        sweeper = self._sweeper(component, batch_size, n_jobs, chosen=seen)
        sweeper.choose_layers()
        started = time.perf_counter()
        for site in sweeper.sites:
            present = weight_rows(site.layer)
            base, sums = seen.get(site.name, (present, None))
            new = sweeper.sums(site).shifted(base - present)
            sums = new if sums is None else sums + new
            seen[site.name] = (base, sums)
            change = solve_ridge(sums, self.ridge)[0]
            sweeper.move(site, base + change - present)
        entry: dict[str, Any] = {
            "sweep": 1,
            "seconds": time.perf_counter() - started,
            **sweeper.layers,
        }
        return TrainingResult(sweeper.network.states(), [{"split": component.split, **entry}])

    def _sweeper(
        self,
        component: Component,
        batch_size: int,
        n_jobs: int | None,
        multiple: float | None = None,
        chosen: Collection[str] = (),
    ) -> Sweeper:
        return Sweeper(
            component.private(),
            batch_size=batch_size,
            n_jobs=n_jobs,
            multiple=multiple,
            ridge=self.ridge,
            C=self.C,
            max_layers=self.max_layers,
            chosen=chosen,
        )


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_positive(value: object, *, zero: bool = False) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and np.isfinite(value) and (value > 0 or (zero and value == 0))  # type: ignore
