"""
Nearest preimages of frozen linear layers: what they cost, and how exact they are
=================================================================================

Every solver of the package and every rival (``inversion_rivals.py``) on a grid of layers
(``inversion_cases.py``): time in units of a forward and adjoint pass, error, memory. Run it from
the top of the repository, on a machine that does nothing else::

    python examples/benchmarks/inversion.py
    python examples/benchmarks/inversion.py --cases '2to1_s64_*' --redo

Results are kept, one file a case: an interrupted run goes on where it stopped. The tables
go to their part of ``docs/benchmarks.md``, the picture beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from inversion_cases import Case, every_case, quick_cases
from inversion_measure import measure_apart
from inversion_report import write_report
from inversion_worker import Limits
from store import load_entries, save_entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for and not there yet, then write the report; 1 if a case failed."""
    options = parse(arguments)
    cases = quick_cases() if options.quick else every_case()
    limits = Limits(seconds=options.seconds, rounds=1 if options.quick else Limits().rounds)
    failures = [] if options.report_only else run(cases, options, limits)
    entries = [(case, load_entries(result_file(options.results, case))) for case in cases]
    results = [(case, entry) for case, entry in entries if entry]
    if not results:
        print(f"There are no results in {options.results}.", file=sys.stderr)
        return 1
    write_report(results, options.page, limits)
    print(f"Wrote {options.page} from {len(results)} of {len(cases)} cases.")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure nearest preimages of linear layers.")
    add = parser.add_argument
    add("--cases", nargs="+", default=["*"], help="names or patterns, such as '2to1_s64_*'")
    add("--jobs", type=int, default=os.cpu_count(), help="cases at a time (default: one a core)")
    add("--seconds", type=float, default=Limits().seconds, help="for set-up and first calls")
    add("--redo", action="store_true", help="measure anew what is there already")
    add("--quick", action="store_true", help="two tiny cases, to see that everything runs")
    add("--report-only", action="store_true", help="only write the tables and the picture")
    add("--results", type=Path, default=Path(".cache/inversion"), help="folder of results")
    add("--page", type=Path, default=Path("docs/benchmarks.md"), help="page to write")
    return parser.parse_args(arguments)


def run(cases: Sequence[Case], options: argparse.Namespace, limits: Limits) -> list[str]:
    """Measure every case that matches, several at a time; return what failed."""
    wanted = [
        case
        for case in cases
        if any(fnmatch(case.name, pattern) for pattern in options.cases)
        and (options.redo or not result_file(options.results, case).exists())
    ]

    def visit(case: Case) -> tuple[str, str]:
        started = time.perf_counter()
        try:
            entry = measure_apart(case, limits)
        except subprocess.CalledProcessError as error:
            return case.name, f"{case.name}: {error}"
        save_entries(result_file(options.results, case), entry)
        return f"{case.name}: {time.perf_counter() - started:.1f} s", ""

    failures = []
    jobs = min(options.jobs, os.cpu_count() or 1)  # more would falsify the times
    with ThreadPoolExecutor(jobs) as pool:
        for i, (line, failure) in enumerate(pool.map(visit, wanted), start=1):
            print(f"{i:4d} of {len(wanted)}  {line}", flush=True)
            failures += [failure] if failure else []
    return failures


def result_file(folder: Path, case: Case) -> Path:
    """Where a case's figures are kept."""
    return folder / f"{case.name}.json"


if __name__ == "__main__":
    sys.exit(main())
