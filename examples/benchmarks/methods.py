"""Every family of methods in the tables, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from choosing import Fitted
from feature_backpropagation import by_default, by_gradient
from rivals import (
    Tuning,
    as_it_is,
    fine_tuned,
    linear_on_features,
    probe_then_fine_tune,
    tune,
)
from settings import Problem

Tunings = Mapping[str, Tuning]

TUNED = {  # AdamW settings that several families share, and so choose once
    "all": lambda problem: tune(problem, head_frozen=False),
    "upstream": lambda problem: tune(problem, head_frozen=True),
}


@dataclass(frozen=True)
class Method:
    """A family; ``needs`` names the AdamW settings it uses, whose choosing counts in its time."""

    label: str
    fit: Callable[[Problem, Tunings], Fitted]
    needs: tuple[str, ...] = ()
    ours: bool = False


def _by_split(problem: Problem, tunings: Tunings) -> Tunings:
    return {problem.penultimate: tunings["upstream"], "output": tunings["all"]}


METHODS = {
    "as_it_is": Method("network as it is", lambda problem, _: as_it_is(problem)),
    "linear": Method("linear on features", lambda problem, _: linear_on_features(problem)),
    "adamw": Method(
        "AdamW",
        lambda problem, tunings: fine_tuned(problem, tunings["all"], head_frozen=False),
        needs=("all",),
    ),
    "adamw_upstream": Method(
        "AdamW upstream",
        lambda problem, tunings: fine_tuned(problem, tunings["upstream"], head_frozen=True),
        needs=("upstream",),
    ),
    "lp_ft": Method("LP-FT", lambda problem, _: probe_then_fine_tune(problem)),
    "published": Method(
        "published rule",
        lambda problem, tunings: by_gradient(
            problem, _by_split(problem, tunings), propagation="layerwise", margin=0.0
        ),
        needs=("all", "upstream"),
    ),
    "joint": Method(
        "joint + gradient",
        lambda problem, tunings: by_gradient(
            problem, _by_split(problem, tunings), propagation="joint"
        ),
        needs=("all", "upstream"),
        ours=True,
    ),
    "closed_form": Method(
        "closed form", lambda problem, _: by_default(problem, "closed_form"), ours=True
    ),
    "auto": Method("auto", lambda problem, _: by_default(problem, "auto"), ours=True),
}
RIVALS = tuple(name for name, method in METHODS.items() if not method.ours)
OURS = tuple(name for name, method in METHODS.items() if method.ours)
YARDSTICK = "adamw"  # whose time is the unit of all others
TARGETS = {"targets_layerwise": "layerwise", "targets_joint": "joint"}
MEMORY = "memory"  # what memory= saves
