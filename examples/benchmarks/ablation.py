"""
What each part of the automatic trainer adds
============================================

``AutoTrainer`` beside itself with one part changed, and beside the AdamW grid, on some settings
of the benchmark (``settings.py``). All variants of a setting and seed run in one process, on the
same network, data and hold-out. Run it from the top of the repository::

    python examples/benchmarks/ablation.py --jobs 2

The page goes to ``docs/ablation.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import sklearn
import torch
from choosing import Fitted, score
from comparison import LEVEL, compare
from feature_backpropagation import by_default
from joblib import Parallel, delayed
from methods import METHODS, TUNED
from post_training import FIRST_SEED
from report import MISSING, by_setting, markdown
from settings import Problem, Setting, matching, prepare
from threadpoolctl import threadpool_limits
from torch import nn

from featprop_sklearn import AutoTrainer, ClosedFormTrainer, GradientTrainer

SHOWN = (
    "digits-same-cnn",
    "digits-transposed-cnn",
    "digits-inverted-cnn",
    "digits-noisy-bn_cnn",
    "digits_vectors-rotated-mlp",
    "classification-rotated-mlp",
    "breast_cancer-rotated-mlp",
    "wine-rotated-mlp",
    "diabetes-rotated-mlp",
)
COLUMNS = ["setting", "group", "seed", "method", "score", "seconds"]
Variant = Callable[[Problem], Fitted]

# Variants -----------------------------------------------------------------------------

# the defaults of AutoTrainer, spelled out to be changed one at a time
SWEEPS: dict[str, Any] = {"sweeps": 1, "multiples": (8.0,), "max_layers": 15}
CYCLE: dict[str, Any] = {"alpha": 0.0, "max_epochs": 30, "schedule": "one_cycle"}
FOR_CLASSES = [{"lr": 2e-2, "weight_decay": 0.2, "label_smoothing": 0.1}]
FOR_VALUES = [{"lr": 1e-2, "weight_decay": decay} for decay in (4.0, 1.0)]


class HeadRefit(ClosedFormTrainer):
    """A sweep without joint targets: the last layer alone is refitted."""

    def train(self, component: Any, **options: Any) -> Any:
        """Train as ever, but with the other affine layers frozen."""
        own = component.private()
        modules = (module for stage in own.stages for module in stage.module.modules())
        affine = [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
        for layer in affine[:-1]:
            layer.requires_grad_(False)
        return super().train(own, **options)


def default(problem: Problem) -> Fitted:
    """Take the trainer as it comes."""
    return by_default(problem, AutoTrainer())


def swept(kind: type[ClosedFormTrainer] = ClosedFormTrainer, **changes: Any) -> Variant:
    """Change the sweeps."""
    sweeps = kind(**(SWEEPS | changes))
    return lambda problem: by_default(problem, AutoTrainer(closed_form=sweeps))


def polished(**changes: Any) -> Variant:
    """Change the polish."""
    return lambda problem: by_default(
        problem, AutoTrainer(polish=polishes(problem.is_regression, **changes))
    )


def polishes(regression: bool, **changes: Any) -> list[GradientTrainer]:
    """Return what held-out data chooses from: other polishes for values than for classes."""
    recipes = [CYCLE | recipe | changes for recipe in (FOR_VALUES if regression else FOR_CLASSES)]
    different = [recipe for i, recipe in enumerate(recipes) if recipe not in recipes[:i]]
    return [GradientTrainer(**recipe) for recipe in different]


def unpolished(problem: Problem) -> Fitted:
    """End with the sweeps."""
    return by_default(problem, AutoTrainer(polish=[]))


def adamw_grid(problem: Problem) -> Fitted:
    """Fine-tune, rate and length chosen on held-out data: a rival of the benchmark."""
    return METHODS["adamw"].fit(problem, {"all": TUNED["all"](problem)})


DEFAULT = "default"
VARIANTS: dict[str, Variant] = {
    DEFAULT: default,
    "no sweeps": swept(sweeps=0),
    "head refit instead of the sweep": swept(HeadRefit),
    "no polish": unpolished,
    "margin 1": swept(multiples=(1.0,)),
    "margin 3": swept(multiples=(3.0,)),
    "C 1": swept(C=1.0),
    "three sweeps": swept(sweeps=3),
    "no label smoothing": polished(label_smoothing=0.0),
    "weight decay 0.01": polished(weight_decay=0.01),
    "constant rate 0.001": polished(schedule="constant", lr=1e-3),
    "AdamW grid": adamw_grid,
}
NOT_FOR_VALUES = ("margin 1", "margin 3", "C 1", "no label smoothing")  # they would change nothing


# Run ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every variant and write the page."""
    options = parse(arguments)
    settings = matching(options.settings)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    visits = [(setting, seed) for seed in seeds for setting in settings]
    jobs = min(options.jobs, os.cpu_count() or 1)  # more would falsify the times
    done = Parallel(n_jobs=jobs, batch_size=1, return_as="generator")(
        delayed(visit)(setting, seed) for setting, seed in visits
    )
    rows = []
    for i, ((setting, seed), found) in enumerate(zip(visits, done, strict=True), start=1):
        rows += found
        print(f"{i:4d} of {len(visits)}  {setting.name} seed {seed}", flush=True)
    options.output.write_text(page(pd.DataFrame(rows, columns=COLUMNS)))
    print(f"Wrote {options.output}.")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Change AutoTrainer part by part.")
    add = parser.add_argument
    add("--seeds", type=int, default=10, help="how many (default: 10)")
    add("--first-seed", type=int, default=FIRST_SEED, help=f"(default: {FIRST_SEED})")
    add("--settings", nargs="+", default=SHOWN, help="names or patterns, such as 'digits-*-cnn'")
    add("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    add("--output", type=Path, default=Path("docs/ablation.md"), help="page to write")
    return parser.parse_args(arguments)


def visit(setting: Setting, seed: int) -> list[dict[str, Any]]:
    """Run every variant on one setting and seed; return a row each."""
    rows = []
    with threadpool_limits(1):
        torch.set_num_threads(1)
        problem = prepare(setting, seed)
        for name, fit in VARIANTS.items():
            if problem.is_regression and name in NOT_FOR_VALUES:
                continue
            started = time.perf_counter()
            fitted = fit(problem)
            seconds = time.perf_counter() - started
            reached = score(problem.test.y, fitted.predict(problem.test.X))
            row = (setting.name, setting.group, seed, name, reached, seconds)
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


# Page ---------------------------------------------------------------------------------


def page(results: pd.DataFrame) -> str:
    """Write the page from one row a setting, seed and variant."""
    differences = pd.concat([compared(*pair) for pair in by_setting(results, "score")])
    parts = [
        introduction(results),
        "## Summary",
        "Mean difference over the settings with classes, in points; number of settings where the\n"
        f"variant is significantly worse, or better, than the default (p < {LEVEL:g}); time as a\n"
        "multiple of the default's (median over settings and seeds).",
        markdown(summary(results, differences), "variant"),
        "## By setting",
        "Variant minus default in points (0.01 of the accuracy, or of R²): mean ± standard\n"
        "deviation over the seeds, and the p value of the paired Wilcoxon test, corrected for the\n"
        f"variants of the setting (Holm). {MISSING}: the change would make no difference.",
        markdown(details(results, differences), "variant"),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(results: pd.DataFrame) -> str:
    """What was compared, and on which seeds."""
    seeds = results["seed"]
    looked_at = (
        f"The defaults were chosen while looking at test scores of seeds below {FIRST_SEED}; "
        + (
            "these are others."
            if seeds.min() >= FIRST_SEED
            else "**some of these are among them.**"
        )
    )
    smoothing = FOR_CLASSES[0]["label_smoothing"]
    return f"""# Ablation: what each part of the automatic trainer adds

Written by `examples/benchmarks/ablation.py` (torch {torch.__version__.partition("+")[0]},
scikit-learn {sklearn.__version__}) from {results["setting"].nunique()} settings of the
[benchmark](benchmarks.md); seeds: {seeds.nunique()} ({seeds.min()} to {seeds.max()}).
{looked_at}
Another seed divides, shifts and pretrains anew, but the data sets are the same.

- *no sweeps*: BatchNorm statistics and polish alone; *no polish*: statistics and sweep alone;
- *head refit instead of the sweep*: the last layer alone is refitted before the polish, as in
  LP-FT; what the default has over it comes from joint targets, and from waking dead units;
- *margin*: in units of the spread of the logits (default {SWEEPS["multiples"][0]:g});
  *C*: of the last layer's logistic regression (default {ClosedFormTrainer().C:g});
- *label smoothing*, *weight decay*, *constant rate*: of the polish (default for classes:
  {smoothing:g}, {FOR_CLASSES[0]["weight_decay"]:g}, and one cycle up to {FOR_CLASSES[0]["lr"]:g});
- *AdamW grid*: the rival of the benchmark."""


def compared(setting: str, table: pd.DataFrame) -> pd.DataFrame:
    """Compare every variant with the default in one setting (seeds × variants)."""
    others = [name for name in VARIANTS if name in table and name != DEFAULT]
    verdict = compare(table, DEFAULT, others)
    spread = 100 * table[others].sub(table[DEFAULT], axis=0).std(ddof=0)
    columns = {"mean": 0 - verdict.difference, "std": spread, "p": verdict.p, "setting": setting}
    return pd.DataFrame(columns).rename_axis("variant").reset_index()


def summary(results: pd.DataFrame, differences: pd.DataFrame) -> pd.DataFrame:
    """One row a variant."""
    with_classes = results.loc[results["group"] != "regression", "setting"].unique()
    times = pd.concat(
        [table.div(table[DEFAULT], axis=0) for _, table in by_setting(results, "seconds")]
    ).median()
    rows = {}
    for name, found in differences.groupby("variant", sort=False):
        clear = found[found["p"] < LEVEL]
        mean = found.loc[found["setting"].isin(with_classes), "mean"].mean()
        rows[name] = {
            "difference": f"{mean:+.2f}",
            "settings": len(found),
            "worse": int((clear["mean"] < 0).sum()),
            "better": int((clear["mean"] > 0).sum()),
            "time": f"{times[name]:.2f}",
        }
    return pd.DataFrame(rows).T


def details(results: pd.DataFrame, differences: pd.DataFrame) -> pd.DataFrame:
    """Variants × settings, the default's own scores first."""
    cells = {
        (row.variant, row.setting): f"{row.mean:+.2f} ± {row.std:.2f} (p {row.p:.3f})"
        for row in differences.itertuples(index=False, name="Row")
    }
    rows = {}
    for setting, table in by_setting(results, "score"):
        cells[DEFAULT, setting] = f"{table[DEFAULT].mean():.3f} ± {table[DEFAULT].std(ddof=0):.3f}"
        rows[setting] = {name: cells.get((name, setting), MISSING) for name in VARIANTS}
    return pd.DataFrame(rows)


if __name__ == "__main__":
    sys.exit(main())
