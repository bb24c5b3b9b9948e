"""All methods on one case, called in turn, in one run and on one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from inversion_cases import Case
from inversion_methods import METHODS, prepare
from inversion_oracle import oracle
from inversion_problem import build
from inversion_worker import Limits, Worker

#: what the timed calls of a method may take together
AFFORDABLE = 1.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def measure_apart(case: Case, limits: Limits) -> dict[str, Any]:
    """Measure in a fresh process.

    Raises
    ------
    subprocess.CalledProcessError
        If that process fails.
    """
    given = json.dumps({"case": asdict(case), "limits": asdict(limits)})
    done = subprocess.run(
        [sys.executable, __file__, given],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, **ONE_THREAD},
    )
    return json.loads(done.stdout)


def measure(case: Case, limits: Limits) -> dict[str, Any]:
    """Measure every method: the entry of a case, ``methods`` by name."""
    torch.set_num_threads(1)
    warm_up()
    problem = build(case)
    truth = oracle(problem)
    workers = [Worker(method, problem, truth, limits) for method in METHODS]
    try:
        for worker in workers:
            worker.start()
        seconds = take_turns([worker for worker in workers if worker.alive], limits.rounds)
    finally:
        for worker in workers:
            worker.stop()
    methods = {worker.method: worker.outcome | seconds.get(worker.method, {}) for worker in workers}
    return {
        "condition": problem.condition,
        "damping": problem.damping,
        "methods": methods,
    }


def warm_up() -> None:
    """Load what libraries load only when it is needed: it would count as time and memory."""
    small = build(Case(2, 1, 1, size=8))
    for method in METHODS:
        with suppress(Exception):  # it will be told of where it matters
            prepare(method, small)(1)


def take_turns(workers: list[Worker], rounds: int) -> dict[str, dict[str, Any]]:
    """Call one after the other, round by round; return the median of each, for all samples."""
    taken: dict[str, list[float]] = {worker.method: [] for worker in workers}
    for done in range(rounds):
        for worker in workers:
            if done == 0 or (done + 1) * worker.outcome["seconds"] <= AFFORDABLE:
                taken[worker.method].append(worker.call())
    return {
        worker.method: {
            "seconds": median(taken[worker.method]) * worker.outcome["scale"],
            "calls": len(taken[worker.method]),
            "extrapolated": worker.outcome["samples"] < worker.outcome["wanted"],
        }
        for worker in workers
    }


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(measure(Case(**arguments["case"]), Limits(**arguments["limits"]))))
