"""The part of the attribution benchmark's page that compares methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from page import write_part

from featprop_sklearn.inspection.sanity import UNRELATED

#: columns of the report -> how they are called, and with how many decimals
LOCALISATION = {
    "pointing_game": ("pointing game ↑", 3),
    "pointing_near": ("within 1 px ↑", 3),
    "mean_iou": ("mIoU, τ = 0 ↑", 3),
    "tuned_iou": ("mIoU, tuned ↑", 3),
    "threshold": ("τ", 2),
    "outside_inside": ("outside / inside ↓", 3),
    "positive_inside": ("positive in target box ↑", 3),
    "negative_inside": ("negative in hostile box ↑", 3),
}
FAITHFULNESS = {
    "average_drop": ("average drop ↓", 1),
    "average_increase": ("average increase ↑", 1),
    "average_gain": ("average gain ↑", 1),
    "insertion": ("insertion ↑", 3),
    "deletion": ("deletion ↓", 3),
}
RANKS = {"spearman": "signed", "spearman_abs": "absolute"}
STRUCTURE = {"ssim": "SSIM", "hog": "HOG"}
CASCADE = {"last layer": 0, "all but the first": -2, "all": -1}
PERMUTED = {"permuted labels": 0}


def write_page(results: Path, page: Path) -> None:
    """Write what the result files hold."""
    entries = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    if not entries:
        return
    parts = [
        _introduction(entries),
        "## Where the maps lie",
        _table(_scores(entries), LOCALISATION),
        "Mean ± standard deviation over the networks. Boxes are those of the digits; mIoU is "
        "that of their strokes. τ is a share of the map's maximum, chosen on every fifth image. "
        "Negative relevance is counted where a method has any.",
        "## What the networks make of them",
        _table(_scores(entries), FAITHFULNESS),
        "Probabilities are sigmoids of the target's logit.",
        "## Do they depend on what was learnt?",
        _sanity_text(),
        "### Layers drawn anew, from the last one down",
        _sanity(entries, "cascading", CASCADE, RANKS),
        _sanity(entries, "cascading", CASCADE, STRUCTURE),
        "### Permuted labels",
        _sanity(entries, "data", PERMUTED, RANKS | STRUCTURE),
        "### One layer at a time",
        _independent(entries),
        "## Time, and what maps leave over",
        _time(entries),
    ]
    write_part(page, "attribution", "\n\n".join(parts))


def _introduction(entries: list[dict[str, Any]]) -> str:
    names = ", ".join(entry["network"] for entry in entries)
    images = sorted({entry["images"] for entry in entries})
    accuracy = [entry["accuracy"] for entry in entries]
    memorised = [entry["memorised"] for entry in entries]
    return (
        "Written by `examples/benchmarks/attribution.py`. Scenes of two handwritten digits "
        "(`make_digit_scenes`: 32 × 32 pixels, digits of 12 × 12 at random places), and "
        f"{len(entries)} networks that tell which digits are there: {names}. Both digits are "
        f"found in {_span(accuracy)} of the scenes of digits that were "
        f"not trained on. Methods explain the one digit in {' or '.join(map(str, images))} such "
        "scenes where both were found. `rsp` is told which the other one is, which here is also "
        "the runner-up, its default; *no hostile* takes none. Networks for the data "
        f"randomisation know {_span(memorised)} of 300 scenes with "
        f"permuted labels by heart. torch {torch.__version__}, captum's methods at the defaults of "
        "`attribute`."
    )


def _span(values: list[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values))))


def _scores(entries: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [
        {"method": method, **found["scores"]}
        for entry in entries
        for method, found in entry["methods"].items()
    ]
    return pd.DataFrame(rows)


def _table(scores: pd.DataFrame, columns: dict[str, tuple[str, int]]) -> str:
    groups = scores.groupby("method", sort=False)
    means, deviations, counts = groups.mean(), groups.std(ddof=0), groups.size()
    cells = {
        label: [
            _cell(means[column][method], deviations[column][method], digits)
            for method in means.index
        ]
        for column, (label, digits) in columns.items()
    }
    frame = pd.DataFrame({"networks": counts.to_list(), **cells}, index=means.index)
    return _markdown(frame)


def _cell(mean: float, deviation: float, digits: int) -> str:
    return "–" if pd.isna(mean) else f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _sanity_text() -> str:
    return (
        "Similarity of the maps to those of the trained network, means over 100 images and the "
        "networks: rank correlation with signs and of absolute values, SSIM and correlation of "
        "gradient histograms of absolute values. *Unrelated* is the level of maps of other "
        "images; a method passes where it falls to that. Guided backpropagation is the control "
        "that is known to fail."
    )


def _sanity(
    entries: list[dict[str, Any]], check: str, places: dict[str, int], measures: dict[str, str]
) -> str:
    """Give each randomised part one column a similarity."""
    rows = []
    for entry in entries:
        for method, found in entry["methods"].items():
            table = pd.DataFrame(found["sanity"][check]).T
            unrelated = table.loc[UNRELATED]
            table = table.drop(index=UNRELATED)
            shown = {name: table.iloc[place] for name, place in places.items()}
            for name, values in {**shown, "unrelated": unrelated}.items():
                rows.append({"method": method, "randomised": name, **values})
    frame = pd.DataFrame(rows).groupby(["method", "randomised"], sort=False).mean()
    wide = frame.rename(columns=measures).unstack("randomised")
    wide = wide[[(label, name) for label in measures.values() for name in [*places, "unrelated"]]]
    wide.columns = [f"{label}, {name}" for label, name in wide.columns]
    return _markdown(wide.map(lambda value: "–" if pd.isna(value) else f"{value:.2f}"))


def _independent(entries: list[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        for method, found in entry["methods"].items():
            table = pd.DataFrame(found["sanity"]["independent"]).T.drop(index=UNRELATED)
            rows.append(
                {
                    "method": method,
                    "last layer, signed": table.spearman.iloc[0],
                    "first layer, signed": table.spearman.iloc[-1],
                    "mean of the others, signed": table.spearman.iloc[1:-1].mean(),
                    "mean of the others, absolute": table.spearman_abs.iloc[1:-1].mean(),
                }
            )
    means = pd.DataFrame(rows).groupby("method", sort=False).mean()
    return _markdown(means.map(lambda value: f"{value:.2f}"))


def _time(entries: list[dict[str, Any]]) -> str:
    rows = [
        {
            "method": method,
            "ms an image": 1000 * found["seconds"] / entry["images"],
            "residual": found["scores"]["residual"],
        }
        for entry in entries
        for method, found in entry["methods"].items()
    ]
    medians = pd.DataFrame(rows).groupby("method", sort=False).median()
    shown = medians.map(lambda value: "–" if pd.isna(value) else f"{value:.2g}")
    return _markdown(shown) + (
        "\n\nProcessor time on one thread, and the median absolute residual, which is 0 where a "
        "method keeps the sum it promises; medians over the networks."
    )


def _markdown(frame: pd.DataFrame) -> str:
    header = ["method", *frame.columns]
    lines = [header, ["---"] * len(header)]
    lines += [
        [f"`{name}`", *map(str, row)]
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
