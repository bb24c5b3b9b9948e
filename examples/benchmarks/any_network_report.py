"""The page of the comparison, from the stored results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import sklearn
import torch
from any_network_cases import CASES
from report import markdown
from rivals import LENGTHS, RATES
from settings import HELD_OUT
from store import load_entries

BAR = 2.0  # points below AdamW's best that are allowed


def write_report(results: Path, page: Path) -> None:
    """Write the page; networks without results are left out."""
    runs = read_runs(results)
    if runs.empty:
        print(f"There are no results in {results}.")
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join([introduction(runs), summary(runs), tables(runs)]) + "\n")
    print(f"Wrote {page}.")


def read_runs(results: Path) -> pd.DataFrame:
    """One row a network and seed that all parts have been run for."""
    rows = []
    for case in CASES:
        for path in sorted((results / case.file_name).glob("seed_*.json")):
            entries = load_entries(path)
            if {"same", "shifted", "rival"} <= set(entries):
                rows.append(
                    {
                        "network": case.name,
                        "shift": case.shift,
                        "seed": int(path.stem.removeprefix("seed_")),
                        "before": 100 * entries["shifted"]["before"],
                        "ours": 100 * entries["shifted"]["after"],
                        "AdamW": 100 * entries["rival"]["after"],
                        "time": entries["shifted"]["seconds"] / entries["rival"]["seconds"],
                        "same before": 100 * entries["same"]["before"],
                        "same after": 100 * entries["same"]["after"],
                        "warnings": len(entries["same"]["warnings"])
                        + len(entries["shifted"]["warnings"]),
                    }
                )
    return pd.DataFrame(rows)


def introduction(runs: pd.DataFrame) -> str:
    """What was compared, and how."""
    seeds = sorted(runs["seed"].unique())
    counts = runs.groupby("network")["seed"].nunique()
    count = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()}-{counts.max()}"
    rates, lengths = (", ".join(f"{value:g}" for value in grid) for grid in (RATES, LENGTHS))
    return f"""# Networks of many kinds

Written by `examples/benchmarks/any_network.py` (torch {torch.__version__.partition("+")[0]},
scikit-learn {sklearn.__version__}); seeds a network: {count} ({seeds[0]} to {seeds[-1]}; those
below 300 were looked at while defaults were chosen).

Each network is pretrained on a third of scikit-learn's digits (the 3-D one: of synthetic volumes).
Then the axes of the images are *transposed*, or all features *rotated* at once, and it is
post-trained on the second third, shifted. Accuracies, in per cent, are those of the last third,
shifted too.

- *ours*: `FeatureBackpropClassifier(network)`, nothing set;
- *AdamW*: at its best of the rates {rates} and {lengths} epochs, chosen on {HELD_OUT:.0%} of the
  rows and refitted on all;
- *time*: ours as a multiple of AdamW's, choosing and refitting included, on one thread; median;
- *same data*: before and after a fit of ours on data that have not changed."""


def summary(runs: pd.DataFrame) -> str:
    """The bar, and whether it is met."""
    means = runs.groupby("network")[["ours", "AdamW", "same before", "same after"]].mean()
    lead = means["ours"] - means["AdamW"]
    change = means["same after"] - means["same before"]
    missed = [name for name in lead.index[lead < -BAR]]
    worse = [f"{name} ({change[name]:+.1f})" for name in change.index[change < 0]]
    single_lead, single_change = (
        runs["ours"] - runs["AdamW"],
        runs["same after"] - runs["same before"],
    )
    return f"""## Summary

| | |
| --- | --- |
| networks | {len(means)} |
| within {BAR:g} points of AdamW's best, or above | {len(means) - len(missed)} |
| above AdamW's best | {int((lead > 0).sum())} |
| least lead over AdamW's best, points | {lead.min():+.1f} ({lead.idxmin()}) |
| mean lead, points | {lead.mean():+.1f} |
| single runs behind AdamW's best | {below_zero(single_lead)} |
| accuracy on the same data fell, on average over the seeds | {", ".join(worse) or "nowhere"} |
| single runs in which it fell | {below_zero(single_change)} |
| time / AdamW's, median | {runs["time"].median():.2f} |
| warnings | {int(runs["warnings"].sum())} |"""


def below_zero(differences: pd.Series) -> str:
    """How many, of how many, and the least."""
    count = int((differences < 0).sum())
    least = f", by {-differences.min():.1f} points at most" if count else ""
    return f"{count} of {len(differences)}{least}"


def tables(runs: pd.DataFrame) -> str:
    """One line a network: means over the seeds, and the standard error of the difference."""
    rows = {}
    for name, found in runs.groupby("network", sort=False):
        difference = found["ours"] - found["AdamW"]
        error = difference.sem() if len(found) > 1 else float("nan")
        mean = found.mean(numeric_only=True)
        rows[name] = {
            "shift": found["shift"].iloc[0],
            "before": f"{mean['before']:.1f}",
            "ours": f"{mean['ours']:.1f}",
            "AdamW": f"{mean['AdamW']:.1f}",
            "difference": f"{difference.mean():+.1f} ± {error:.1f}",
            "time": f"{found['time'].median():.2f}",
            "same data": f"{mean['same before']:.1f} → {mean['same after']:.1f}",
        }
    return (
        "## By network\n\n"
        "Means over the seeds; the difference with its standard error.\n\n"
        + markdown(pd.DataFrame(rows).T, "network")
    )
