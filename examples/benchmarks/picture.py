"""The picture: how far each rival is from ours, and what ours costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from comparison import Verdict
from methods import METHODS, RIVALS, YARDSTICK

SHOWN = dict(zip((name for name in RIVALS if name != "as_it_is"), "soD^v", strict=True))
TIMED = "lp_ft"  # the rival whose time is drawn beside ours
POINTS = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20)
RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10)


def draw(verdicts: Mapping[str, Verdict], ratios: pd.DataFrame, ours: str, path: Path) -> None:
    """One row a setting: rivals' scores relative to ours on the left, times on the right."""
    from matplotlib.figure import Figure

    rows = np.arange(len(verdicts))
    label = METHODS[ours].label
    figure = Figure(figsize=(11, 1.5 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    left.axvline(0, color="black", label=label)
    right.axvline(1, color="grey")
    for colour, (rival, marker) in enumerate(SHOWN.items()):
        style = {"marker": marker, "color": f"C{colour}", "ls": "", "label": METHODS[rival].label}
        points = [-verdict.difference[rival] for verdict in verdicts.values()]
        left.plot(points, rows, alpha=0.8, **style)
        if rival == TIMED:
            right.plot(ratios.loc[list(verdicts), rival], rows, **style)
    right.plot(ratios.loc[list(verdicts), ours], rows, "*", color="black", label=label)
    left.set_xscale("symlog", linthresh=2, linscale=2)
    left.set_xlabel(f"points over {label} (logarithmic beyond ±2)")
    left.set_yticks(rows, list(verdicts))
    left.invert_yaxis()
    right.set_xscale("log")
    right.set_xlabel(f"time / {METHODS[YARDSTICK].label} grid")
    for axes, ticks in ((left, POINTS), (right, RATIOS)):
        low, high = axes.get_xlim()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(low, high)  # ticks outside the data would widen it
        axes.grid(axis="y", alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
