"""
Ways to post-train a network on shifted data, compared
======================================================

Twenty settings (``settings.py``), each with several seeds: a network is pretrained, the data
change, and every family of methods (``methods.py``) adapts the network to all the training
rows. Whatever a family chooses, it chooses on the same held-out quarter of them, and then
refits on all. Run it from the top of the repository::

    python examples/benchmarks/post_training.py --jobs 2

Results are kept, one file a setting and seed: an interrupted run goes on where it stopped,
and ``--methods auto --redo`` computes one method anew. The tables go to their part of
``docs/benchmarks.md``, the picture beside it, the raw figures to ``results.csv`` in the folder of
results.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from choosing import score
from feature_backpropagation import memory_saving, target_quality
from joblib import Parallel, delayed
from methods import MEMORY, METHODS, OURS, TARGETS, TUNED
from networks import adamw
from report import write_report
from rivals import Tuning
from settings import Problem, Setting, matching, prepare
from store import load_entries, read_scores, result_file, save_entries
from threadpoolctl import threadpool_limits

FIRST_SEED = 200  # those below were looked at while the defaults of AutoTrainer were chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and not there yet, then write the report; 1 if anything failed."""
    options = parse(arguments)
    settings = matching(options.settings)
    failures = [] if options.report_only else run(settings, options)
    scores = read_scores(options.results)
    if scores.empty:
        print(f"There are no results in {options.results}.", file=sys.stderr)
        return 1
    print("\nSeconds a seed:\n" + seconds_table(scores))
    write_report(options.results, options.page, options.ours)
    print(f"\nWrote {options.page}.")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    known = [*METHODS, *TARGETS, MEMORY]
    parser = argparse.ArgumentParser(description="Compare post-training methods.")
    add = parser.add_argument
    add("--seeds", type=int, default=10, help="how many (default: 10)")
    add("--first-seed", type=int, default=FIRST_SEED, help=f"(default: {FIRST_SEED})")
    add("--settings", nargs="+", default=["*"], help="names or patterns, such as 'digits-*-cnn'")
    add("--methods", nargs="+", default=known, choices=known, metavar="NAME", help=f"of {known}")
    add("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    add("--redo", action="store_true", help="compute anew what is there already")
    add("--report-only", action="store_true", help="only write the tables and the picture")
    add("--results", type=Path, default=Path(".cache/post_training"), help="folder of results")
    add("--page", type=Path, default=Path("docs/benchmarks.md"), help="page to write")
    add("--ours", default="auto", choices=OURS, help="which of ours is compared with the rivals")
    return parser.parse_args(arguments)


def run(settings: Sequence[Setting], options: argparse.Namespace) -> list[str]:
    """Visit every setting with every seed, several at a time; return what failed."""
    jobs = min(options.jobs, os.cpu_count() or 1)  # more would falsify the times
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    visits = [(setting, seed) for seed in seeds for setting in settings]
    done = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(
        delayed(visit)(setting, seed, options.methods, options.results, options.redo)
        for setting, seed in visits
    )
    failures = []
    for i, (line, failed) in enumerate(done, start=1):
        print(f"{i:4d} of {len(visits)}  {line}", flush=True)
        failures += failed
    return failures


def visit(
    setting: Setting, seed: int, wanted: Sequence[str], folder: Path, redo: bool
) -> tuple[str, list[str]]:
    """Run what is missing of one setting and seed, and save each result at once.

    Returns
    -------
    line : str
        For the progress.
    failed : list of str
        Methods that raised, which therefore have no result.
    """
    started = time.perf_counter()
    path = result_file(folder, setting, seed)
    entries = load_entries(path)
    missing = [name for name in wanted if (redo or name not in entries) and applies(name, setting)]
    failed = []
    with threadpool_limits(1):
        torch.set_num_threads(1)
        if missing:
            bench = Bench(prepare(setting, seed))
        for name in missing:
            entries.pop(name, None)
            try:
                entries[name] = bench.measure(name)
            except Exception as error:  # a long run goes on without the method; main says so
                traceback.print_exc()
                failed.append(f"{setting.name} seed {seed} {name}: {error}")
            save_entries(path, entries)
    return f"{setting.name} seed {seed}: {time.perf_counter() - started:.1f} s", failed


def applies(name: str, setting: Setting) -> bool:
    """Whether a method, or a measurement, is made of the setting."""
    if name == MEMORY:
        return setting.measures_memory
    return name not in TARGETS or setting.measures_targets


class Bench:
    """Measures methods on one problem; what several of them choose alike is chosen once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.pace = median(_time(short_run, problem) for _ in range(4))
        self.tunings: dict[str, Tuning] = {}

    def measure(self, name: str) -> dict[str, Any]:
        """Return the entry of a method, or of the targets of a rule."""
        if name == MEMORY:
            return {"grid_seconds": memory_saving(self.problem)}
        if name in TARGETS:
            return {"splits": target_quality(self.problem, TARGETS[name])}
        method = METHODS[name]
        for needed in method.needs:
            if needed not in self.tunings:
                self.tunings[needed] = TUNED[needed](self.problem)
        started = time.perf_counter()
        fitted = method.fit(self.problem, self.tunings)
        seconds = time.perf_counter() - started
        seconds += sum(self.tunings[needed].seconds for needed in method.needs)
        reached = score(self.problem.test.y, fitted.predict(self.problem.test.X))
        return {"score": reached, "seconds": seconds, "pace": self.pace, "chosen": fitted.chosen}


def short_run(problem: Problem) -> None:
    """Train a little: the clock that makes times of different runs comparable."""
    list(adamw(problem.network, *problem.fitting, lr=1e-3, lengths=(10,), seed=0))


def _time(task: Any, problem: Problem) -> float:
    started = time.perf_counter()
    task(problem)
    return time.perf_counter() - started


def seconds_table(scores: Any) -> str:
    """Mean over the seeds, by setting and method, and in all."""
    table = scores.pivot_table(index="setting", columns="method", values="seconds", sort=False)
    return table.assign(all=table.sum(axis=1)).round(2).to_string()


if __name__ == "__main__":
    sys.exit(main())
