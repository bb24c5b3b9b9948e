"""
Networks of many kinds, post-trained with nothing set
=====================================================

Each network (``any_network_cases.py``) is pretrained on a third of the digits, or of synthetic
volumes. Then the axes of the images are transposed, or all features rotated, and it is
post-trained on another third: by ``FeatureBackpropClassifier(network)`` as it comes, and by
AdamW at its best of six settings, chosen on a quarter of the rows and refitted on all. The
accuracies are those of the last third. Run it from the top of the repository::

    python examples/benchmarks/any_network.py

Results are kept, one file a network and seed: an interrupted run goes on where it stopped, and
``--redo same shifted`` computes our part anew. The tables go to ``docs/any_network.md``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from any_network_cases import CASES, Case
from any_network_data import prepare
from any_network_report import write_report
from choosing import score
from networks import predict
from rivals import fine_tuned, tune
from settings import Problem
from store import load_entries, save_entries

from featprop_sklearn import FeatureBackpropClassifier

FIRST_SEED = 300  # those below were looked at while the defaults of AutoTrainer were chosen
PARTS = ("same", "shifted", "rival")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and not there yet, then write the page."""
    parser = argparse.ArgumentParser(description="Post-train networks of many kinds.")
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="how many (default: 3)")
    add("--first-seed", type=int, default=FIRST_SEED, help=f"(default: {FIRST_SEED})")
    add("--networks", nargs="+", metavar="NAME", help="these alone")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=f"of {PARTS}")
    add("--redo", action="store_true", help="compute anew what is there already")
    add("--report-only", action="store_true", help="only write the page")
    add("--results", type=Path, default=Path(".cache/any_network"), help="folder of results")
    add("--page", type=Path, default=Path("docs/any_network.md"), help="page to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    chosen = [case for case in CASES if not options.networks or case.name in options.networks]
    for seed in () if options.report_only else seeds:
        for case in chosen:
            visit(case, seed, options.parts, options.results, redo=options.redo)
    write_report(options.results, options.page)


def visit(case: Case, seed: int, parts: Sequence[str], folder: Path, *, redo: bool) -> None:
    """Measure what is missing of one network and seed, and save each result at once."""
    path = folder / case.file_name / f"seed_{seed}.json"
    entries = load_entries(path)
    for part in parts:
        if redo or part not in entries:
            problem = prepare(case, seed, shifted=part != "same")
            entries[part] = by_adamw(problem) if part == "rival" else by_default(case, problem)
            save_entries(path, entries)
            print(f"{case.name}, seed {seed}, {part}: {json.dumps(entries[part])}", flush=True)


def by_default(case: Case, problem: Problem) -> dict[str, Any]:
    """Post-train with the defaults; note accuracies, time and warnings."""
    network = problem.network[0].network
    before = score(problem.test.y, predict(problem.network, problem.test.X))
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator = FeatureBackpropClassifier(network, random_state=problem.seed)
        estimator.fit(case.given(problem.train.X), problem.train.y)
    seconds = time.process_time() - started
    after = estimator.score(case.given(problem.test.X), problem.test.y)
    texts = [str(warning.message) for warning in caught]
    return {"before": before, "after": float(after), "seconds": seconds, "warnings": texts}


def by_adamw(problem: Problem) -> dict[str, Any]:
    """Choose rate and epochs on the held-out quarter, and refit on all rows."""
    started = time.process_time()
    fitted = fine_tuned(problem, tune(problem, head_frozen=False), head_frozen=False)
    seconds = time.process_time() - started
    after = score(problem.test.y, fitted.predict(problem.test.X))
    return {"after": after, "seconds": seconds, "chosen": fitted.chosen}


if __name__ == "__main__":
    main()
