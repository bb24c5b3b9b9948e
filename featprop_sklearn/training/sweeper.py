"""Forward through the layers of a component, refitting one after the other."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featprop_sklearn.data import RowStore, batches, spread_rows
from featprop_sklearn.networks import Chain, Site, affine_sites, reasons_against
from featprop_sklearn.training.backtracking import move_weights
from featprop_sklearn.training.batch_norm import reestimate_batch_norm
from featprop_sklearn.training.carried import CarriedFeatures
from featprop_sklearn.training.component import Component, Labelled
from featprop_sklearn.training.gram import GramSums, solve_ridge
from featprop_sklearn.training.head import is_head, refit_head
from featprop_sklearn.training.layer_shares import explained_shares
from featprop_sklearn.training.layer_sums import layer_sums
from featprop_sklearn.training.losses import mean_task_loss
from featprop_sklearn.training.routing import routed_layers
from featprop_sklearn.training.waking import wake_dead_units

__all__ = ["Sweeper"]

ROUTED = "not every sample gets to it, or not just once"


class Sweeper:
    """The sweeps over one private component, with one margin."""

    def __init__(
        self,
        own: Component,
        *,
        batch_size: int,
        n_jobs: int | None = None,
        multiple: float | None = None,
        ridge: float | str = "auto",
        C: float = 0.1,
        max_layers: int | None = None,
        chosen: Collection[str] = (),
    ) -> None:
        self.ridge = ridge
        self.C = C
        self.own = own
        self.network = own.network()
        self.chain = Chain((*own.stages, *own.after))
        self.batch_size = len(own.data) if batch_size == -1 else batch_size
        self.n_jobs = n_jobs
        self.multiple = multiple
        self.network.eval()
        self.sites = affine_sites(own.stages, own.data.inputs[:8])
        self.routed = self._leave_out_routed()
        self.head = self._find_head()
        self.max_layers = max_layers
        self.chosen = chosen
        self.left_out: list[str] = []
        self.targets = own.output_targets
        self.start_over()
        self.history: list[dict[str, Any]] = []

    def run(self, sweeps: int, tol: float, verbose: int = 0) -> tuple[float, bool]:
        """Sweep while it helps; return the loss of the state kept, and if it was interrupted."""
        states, loss = self.network.states(), self._loss()
        others = reasons_against(self.own.stages, self.own.data.inputs[:8])
        self._note(0, loss, 0.0, refitted=[], not_refitted={**others, **self.routed})
        try:
            states, loss = self._batch_norm(states, loss)
            for sweep in range(1, sweeps + 1):
                started = time.perf_counter()
                ridges = self._sweep(first=sweep == 1)
                new = self._loss()
                seconds = time.perf_counter() - started
                self._note(sweep, new, seconds, **self.layers, ridge=ridges)
                if verbose:
                    print(f"{self.own.split}: sweep {sweep}, loss {loss:.6g} -> {new:.6g}")
                if not new < loss:
                    self.network.restore(states)
                    break
                gain, loss, states = loss - new, new, self.network.states()
                if gain < tol * abs(loss):
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
            self.choose_layers()
        ridges = {}
        self._follow_logits()
        self.start_over()
        for site in self.sites:
            # where data are routed at all, a refit before may lead them elsewhere
            if site is not self.head and not (self.routed and self._is_routed(site)):
                ridges[site.name] = self.refit(site)
        self._refit_head()
        return ridges

    def refit(self, site: Site) -> float:
        """Refit one layer by least squares; return the ridge."""
        change, ridge = solve_ridge(self.sums(site), self.ridge)
        self.move(site, change)
        return ridge

    def move(self, site: Site, change: Tensor) -> None:
        """Change a layer's weights as far as the training loss falls."""
        chain, _, data = self.from_here(site)
        data = data.take(spread_rows(len(data)))
        targets, size = self.own.output_targets, self.batch_size
        move_weights(site.layer, change, lambda: mean_task_loss(chain, data, targets, size))

    def start_over(self) -> None:
        """Go back to the first layer, for weights have changed."""
        self.carried = CarriedFeatures(self.chain.modules(), self.own.data.inputs, self.batch_size)

    def from_here(self, site: Site) -> tuple[Chain, Site, Labelled]:
        """Return the chain from a layer's stage on, or from somewhat before, and its data.

        Going backwards takes a :meth:`start_over`.
        """
        self.carried.advance(site.stage)
        stop = self.carried.stop
        data = replace(self.own.data, inputs=self.carried.kept)
        return self.chain[stop:], replace(site, stage=site.stage - stop), data

    @property
    def layers(self) -> dict[str, list[str]]:
        """Names of the layers that a sweep refits, and that ``max_layers`` keeps it from."""
        return {"refitted": [site.name for site in self.sites], "left_out": self.left_out}

    def choose_layers(self) -> None:
        """Leave out layers beyond ``max_layers``: those that could learn least of what is asked.

        Of an earlier choice, keep the ``chosen``.
        """
        inner = [site for site in self.sites if site is not self.head]
        if self.max_layers is None or len(inner) <= self.max_layers:
            return
        if not self.chosen:
            data, targets = self.own.data, self.own.output_targets
            shares = explained_shares(self.chain, inner, data, targets, self.batch_size)
            # of layers that are alike the later, whose refits cost less
            order = sorted(range(len(inner)), key=lambda i: (shares[i], i), reverse=True)
            self.chosen = [inner[i].name for i in order[: self.max_layers]]
        left_out = [site for site in inner if site.name not in self.chosen]
        self.sites = [site for site in self.sites if site not in left_out]
        self.left_out = [site.name for site in left_out]

    def sums(self, site: Site) -> GramSums:
        """Sum up what a layer gets and what it lacks."""
        chain, here, data = self.from_here(site)
        return layer_sums(chain, here, data, self.targets, self.batch_size, self.n_jobs)

    def _leave_out_routed(self) -> dict[str, str]:
        """Keep the layers that get every sample; return why the others are not refitted."""
        inputs, sites = self.own.data.inputs, self.sites
        routed = routed_layers(self.own.stages, sites, inputs, self.batch_size)
        self.sites = [site for site in sites if site.layer not in routed]
        return {site.name: ROUTED for site in sites if site.layer in routed}

    def _is_routed(self, site: Site) -> bool:
        chain, here, data = self.from_here(site)
        return bool(routed_layers(chain, [here], data.inputs, self.batch_size))

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
        features = RowStore(data.inputs)
        for _, x in self.carried.before(self.head.stage):
            features.append(self.head.read(self.chain, x)[0])
        layer: Any = self.head.layer
        refit_head(layer, features.result(), data.y, data.weights, self.targets, self.C)

    @torch.no_grad()
    def _follow_logits(self) -> None:
        """Set the margin on the scale of the present logits."""
        data = self.own.data.take(spread_rows(len(self.own.data)))
        outputs = torch.cat(
            [self.chain(data.inputs[rows]) for rows in batches(len(data), self.batch_size)]
        )
        self.targets = self.targets.rescaled(outputs, data.weights, self.multiple)

    def _loss(self) -> float:
        data = self.own.data if self.own.validation is None else self.own.validation
        return mean_task_loss(self.chain, data, self.own.output_targets, self.batch_size)

    def _note(self, sweep: int, loss: float, seconds: float, **more: Any) -> None:
        name = "train_loss" if self.own.validation is None else "valid_loss"
        entry = {"split": self.own.split, "sweep": sweep, name: loss, "seconds": seconds}
        self.history.append({**entry, **more})
