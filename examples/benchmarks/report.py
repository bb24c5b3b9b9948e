"""The part of the page, the picture and the CSV file, all from the stored results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
import torch
from comparison import LEVEL, Verdict, compare
from feature_backpropagation import ALPHAS, QUALITY
from methods import METHODS, RIVALS, TARGETS, YARDSTICK
from networks import WEIGHT_DECAY
from page import write_part
from picture import draw
from rivals import LENGTHS, RATES
from settings import HELD_OUT, NOISE, PRETRAINED_ON
from store import read_memory, read_scores, read_targets

from featprop_sklearn import GradientTrainer

GROUPS = {"images": "Images", "tables": "Tables", "regression": "Regression"}
MISSING = "–"


def write_report(results: Path, page: Path, ours: str) -> None:
    """Write everything; ``ours`` is the method that is compared with the rivals."""
    scores = read_scores(results)
    scores.to_csv(results / "results.csv", index=False)
    picture = page.with_name(f"{page.stem}_post_training.png")
    page.parent.mkdir(parents=True, exist_ok=True)
    verdicts = judge(scores, ours)
    ratios = time_ratios(scores)
    if verdicts:
        draw(verdicts, ratios, ours, picture)
    parts = [
        introduction(scores),
        summary(scores, verdicts, ratios, ours),
        f"![{METHODS[ours].label} and its rivals]({picture.name})" if verdicts else "",
        scores_section(scores),
        verdict_section(verdicts, ours),
        time_section(ratios),
        memory_section(read_memory(results)),
        targets_section(read_targets(results)),
    ]
    write_part(page, "post_training", "\n\n".join(part for part in parts if part))


def judge(scores: pd.DataFrame, ours: str) -> dict[str, Verdict]:
    """Verdicts by setting, where ours and every rival have been run on a common seed."""
    verdicts = {}
    for setting, table in by_setting(scores, "score"):
        methods = {ours, *RIVALS}
        if methods <= set(table) and len(table[list(methods)].dropna()):
            verdicts[setting] = compare(table, ours, RIVALS)
    return verdicts


def time_ratios(scores: pd.DataFrame) -> pd.DataFrame:
    """Median over seeds of the time in units of the yardstick's; settings × methods.

    Each time is first divided by that of a fixed short training in the same run, so that a
    method computed anew on a slower day is not called slow.
    """
    paced = scores.assign(paced=scores["seconds"] / scores["pace"])
    rows = {
        setting: table.div(table[YARDSTICK], axis=0).median()
        for setting, table in by_setting(paced, "paced")
        if YARDSTICK in table
    }
    return pd.DataFrame(rows).T.reindex(columns=[name for name in METHODS if name != YARDSTICK])


def by_setting(scores: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """Tables of seeds × methods."""
    return [
        (setting, rows.pivot(index="seed", columns="method", values=column))
        for setting, rows in scores.groupby("setting", sort=False)
    ]


# Sections -----------------------------------------------------------------------------


def introduction(scores: pd.DataFrame) -> str:
    """What was compared, and how."""
    seeds = scores.groupby("setting")["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    sizes = " and ".join(f"{size:,}" for size in sorted(set(PRETRAINED_ON.values())))
    rates, lengths = (", ".join(f"{value:g}" for value in grid) for grid in (RATES, LENGTHS))
    alphas = ", ".join(f"{alpha:g}" for alpha in ALPHAS)
    return f"""## Post-training on shifted data

Written by `examples/benchmarks/post_training.py` (torch {torch.__version__.partition("+")[0]},
scikit-learn {sklearn.__version__}) from {len(seeds)} settings; seeds a setting: {count}.

A network is pretrained on training rows ({sizes} of digits and of the generated data,
all those of the other tables). Then the data change, and every method adapts the network to *all*
training rows, half of the data. Scores are those of the other half: accuracy, or R² for
regression. What a family chooses, it chooses on the same {HELD_OUT:.0%} of the training rows, then
refits on all; its time is that of choosing and refitting, on one thread.

- shifts: images *transposed*, contrast *inverted*, noise added (*noisy*, σ {NOISE:g}); features
  *rotated* or *rescaled*; *class_rare* and *class_missing*: pretraining saw a tenth, or nothing,
  of one class;
- *linear on features*: logistic or ridge regression on the features of the best layer;
- *AdamW*: rates {rates} × epochs {lengths}, weight decay {WEIGHT_DECAY:g}, on all
  weights, or *upstream* of the output layer;
- *LP-FT*: the output layer refitted, then the same AdamW grid (Kumar et al., 2022);
- *published rule*: layerwise targets, margin 0, alpha of {alphas}, split at the
  penultimate feature or the output, rate and epochs as AdamW chose them for the same weights,
  weight decay {GradientTrainer().weight_decay:g} as published (leads over AdamW may be due to it);
- ours: *joint + gradient* chooses as the published rule does; *closed form* and *auto* are one
  fit with nothing set."""


def summary(
    scores: pd.DataFrame, verdicts: dict[str, Verdict], ratios: pd.DataFrame, ours: str
) -> str:
    """Counts by group, and the times in one line each."""
    group_of = dict(zip(scores["setting"], scores["group"], strict=True))
    rows = {}
    for group, title in GROUPS.items():
        found = {name: v for name, v in verdicts.items() if group_of[name] == group}
        if not found:
            continue
        times = ratios.loc[list(found), ours]
        worst = min(found, key=lambda name: found[name].lead)
        rows[title] = {
            "settings": len(found),
            "at least the best rival": sum(v.lead >= -1e-9 for v in found.values()),
            "significantly better than every rival": sum(v.beats_all for v in found.values()),
            "significantly worse than some rival": sum(bool(v.beaten_by) for v in found.values()),
            "least lead over the best rival, points": f"{found[worst].lead:+.1f} ({worst})",
            "time / AdamW's, median (largest)": f"{times.median():.2f} ({times.max():.2f})",
        }
    if not rows:
        return ""
    return (
        f"### Summary: {METHODS[ours].label}\n\n"
        "The best rival is the one with the highest mean on the *test* data of the setting: no\n"
        "user could have known it.\n\n" + markdown(pd.DataFrame(rows).T, "group")
    )


def scores_section(scores: pd.DataFrame) -> str:
    """Mean ± standard deviation over the seeds."""
    parts = ["### Scores", "Mean ± standard deviation over the seeds; the best mean is bold."]
    for group, title in GROUPS.items():
        rows = {}
        for setting, table in by_setting(scores[scores["group"] == group], "score"):
            mean, std = table.mean(), table.std(ddof=0)
            rows[setting] = {"seeds": len(table)} | {
                METHODS[name].label: _bold(f"{mean[name]:.3f} ± {std[name]:.3f}", name, mean)
                if name in mean
                else MISSING
                for name in METHODS
            }
        if rows:
            parts += [f"#### {title}", markdown(pd.DataFrame(rows).T, "setting")]
    return "\n\n".join(parts)


def verdict_section(verdicts: dict[str, Verdict], ours: str) -> str:
    """Differences to every rival, in points, with their p values."""
    if not verdicts:
        return ""
    rows = {
        setting: {
            METHODS[name].label: f"{verdict.difference[name]:+.1f} ({_p(verdict.p[name])})"
            for name in RIVALS
        }
        | {
            "best rival": METHODS[verdict.best_rival].label,
            "lead over it": f"{verdict.lead:+.1f}",
            "significantly better than every rival": "yes" if verdict.beats_all else "no",
            "significantly worse than": ", ".join(METHODS[n].label for n in verdict.beaten_by)
            or MISSING,
        }
        for setting, verdict in verdicts.items()
    }
    return (
        f"### {METHODS[ours].label.capitalize()} against each rival\n\n"
        "Mean difference in points (0.01 of the score), and the p value of the paired Wilcoxon\n"
        f"test, corrected for the rivals of the setting (Holm); significant is p < {LEVEL:g}.\n\n"
        + markdown(pd.DataFrame(rows).T, "setting")
    )


def time_section(ratios: pd.DataFrame) -> str:
    """Times as multiples of the AdamW grid's."""
    if ratios.empty:
        return ""
    shown = ratios.rename(columns={name: METHODS[name].label for name in ratios})
    cells = shown.map(lambda ratio: MISSING if np.isnan(ratio) else f"{ratio:.2f}")
    return (
        "### Time\n\n"
        f"As a multiple of the {METHODS[YARDSTICK].label} grid's, refit included; median over the\n"
        "seeds.\n\n" + markdown(cells, "setting")
    )


def memory_section(memory: pd.DataFrame) -> str:
    """What a grid saves by remembering targets."""
    if memory.empty:
        return ""
    rows = {
        rule: {
            "setting": ", ".join(found["setting"].unique()),
            "time without / with `memory=`": f"{(found['without'] / found['with']).median():.1f}",
        }
        for rule, found in memory.groupby("rule", sort=False)
    }
    return (
        "### Targets remembered\n\n"
        "Time of all fits of a grid over every split and two values of alpha, without epochs, so\n"
        "that the targets and the fixed cost of a fit are all that counts; medians. The layerwise\n"
        "rule gets all splits from one sweep, the joint rule each split's targets once.\n\n"
        + markdown(pd.DataFrame(rows).T, "rule")
    )


def targets_section(targets: pd.DataFrame) -> str:
    """Repair, kept and reached rates of both rules, split by split."""
    if targets.empty:
        return ""
    means = targets.groupby(["setting", "split", "rule"], sort=False)[list(QUALITY)].mean()
    rows = {}
    for (setting, split), found in means.groupby(level=["setting", "split"], sort=False):
        found = found.droplevel(["setting", "split"])
        rows[f"{setting}: {split}"] = {
            f"{measure.removesuffix('_rate')}, {TARGETS[rule]}": _rate(found, rule, measure)
            for measure in QUALITY
            for rule in TARGETS
        }
    return (
        "### Feature targets, split by split\n\n"
        "Of the pretrained network on the shifted training rows, margin as by default, mean over\n"
        "the seeds. *repair*: share of the samples that the network gets wrong whose target,\n"
        "pushed forward, is classified as its label; *kept*: the same among those it gets right;\n"
        "*reached*: share of all whose pushed-forward output has the wanted lead.\n\n"
        + markdown(pd.DataFrame(rows).T, "setting: split")
    )


# Cells --------------------------------------------------------------------------------


def markdown(table: pd.DataFrame, index: str) -> str:
    """Write a table in Markdown, its index as the first column."""
    lines = [[index, *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _bold(cell: str, name: str, means: pd.Series) -> str:
    return f"**{cell}**" if np.isclose(means[name], means.max()) else cell


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _rate(found: pd.DataFrame, rule: str, measure: str) -> str:
    rate = found[measure].get(rule, np.nan)
    return MISSING if np.isnan(rate) else f"{rate:.2f}"
