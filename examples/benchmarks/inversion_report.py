"""The part of the page on inversion: the bars, the picture, and every figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from inversion_bars import (
    BUDGET,
    LIFE,
    Check,
    a_call,
    against_best,
    checks,
    ratio,
    total,
    value,
)
from inversion_cases import Case
from inversion_methods import METHODS, PASS, PASS32, PRODUCT
from inversion_ours import AUTO, OURS
from inversion_picture import draw
from inversion_rivals import CG_ITERATIONS, CG_TOLERANCE, LSQR_TOLERANCE
from inversion_worker import Limits
from page import write_part

Results = list[tuple[Case, dict[str, Any]]]
Outcome = dict[str, Any]


def write_report(results: Results, page: Path, limits: Limits) -> None:
    """Write the picture and the part of the page."""
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = page.with_name(f"{page.stem}_inversion.png")
    drawn = draw(results, picture)
    parts = [
        introduction(results, limits),
        bars_section(results),
        f"![Cost of a nearest preimage by size]({picture.name})" if drawn else "",
        choice_section(results),
        times_section(results),
        errors_section(results),
        set_up_section(results),
    ]
    write_part(page, "inversion", "\n\n".join(part for part in parts if part))


# Sections -----------------------------------------------------------------------------


def introduction(results: Results, limits: Limits) -> str:
    """What was measured, and how."""
    return f"""## Nearest preimages of frozen linear layers

Written by `examples/benchmarks/inversion.py` (torch {torch.__version__.partition("+")[0]},
SciPy {scipy.__version__}) from {len(results)} cases. One layer is inverted for N samples:
x = x₀ + argmin ‖A d − r‖² + λ²‖d‖², r = y − A x₀, in float64.

- a *pass* is A and its adjoint once, `conv2d` and `conv_transpose2d` in float64, for linear
  layers the two products; r is given to every method, and what A x₀ takes is shown by itself;
- times are the processor's, one thread, medians of up to seven calls; all methods of a case take
  turns in one run, each in a process of its own. What takes longer than
  {limits.call_seconds:g} s a call is timed on fewer samples and extrapolated (≈); *out of time*:
  more than {limits.seconds:g} s for the set-up and the first calls; *out of memory*: more than
  {limits.n_bytes / 2**30:g} GiB. A large linear layer's samples come in batches;
- *error*: ‖x − x\\*‖/‖x\\*‖, the largest of up to three samples; x\\* from SciPy: dense QR, sparse
  LU, or preconditioned conjugate gradients whose normal equations are verified;
- rivals, everything repeated in every call: *exact_matrix* (dense, Cholesky of AA′ or least
  squares), *cg* (batched, at most {CG_ITERATIONS} steps, tolerance {CG_TOLERANCE:g}), *fft_pad*
  (taken for periodic, not exact), *lsqr loop* (SciPy's, sparse matrix, tolerance
  {LSQR_TOLERANCE:g}), *torch* and
  *numpy lstsq* (for linear layers);
- conditions are those of the matrix, a convolution's at size 16, 8 or 4 by its channels; where one
  is given, a kernel of condition 1 is blended with a blurring one until it is met or out of reach;
- λ is 0, a share of σ_max, or `damping="auto"`."""


def bars_section(results: Results) -> str:
    """Every bar: where it holds, and the worst figure."""
    found: dict[str, list[Check]] = {}
    for case, entry in results:
        for check in checks(case, entry):
            found.setdefault(check.bar, []).append(check)
    rows = {bar: _bar_row(found[bar]) for bar in sorted(found)}
    missed = [
        f"- {bar}: " + ", ".join(_figure(check) for check in found[bar] if not check.met)
        for bar in sorted(found)
        if not all(check.met for check in found[bar])
    ]
    text = f"### Bars for auto\n\n{_table(rows, 'bar')}"
    return text + ("\n\nWhere they are missed:\n\n" + "\n".join(missed) if missed else "")


def _bar_row(found: list[Check]) -> dict[str, str]:
    worst = max(found, key=lambda check: check.badness)
    limits = sorted({check.limit for check in found})
    return {
        "limit": ("≥ " if worst.at_least else "≤ ") + " or ".join(f"{x:g}" for x in limits),
        "met": "yes" if all(check.met for check in found) else "**no**",
        "cases that meet it": f"{sum(check.met for check in found)} of {len(found)}",
        "worst": _figure(worst),
    }


def _figure(check: Check) -> str:
    return f"{_short(check.value)} ({_label(check.case)})"


def choice_section(results: Results) -> str:
    """What auto took, and what the best of ours would have cost."""
    rows = {}
    for case, entry in results:
        methods = entry["methods"]
        rows[_label(case)] = {
            "taken": methods[AUTO].get("solver", methods[AUTO].get("failed", "")),
            f"total, {LIFE} samples: auto / best": _short(against_best(methods, case, total)),
            "a call: auto / best": _short(against_best(methods, case, a_call)),
        }
    text = f"Best: of ours that converge within {BUDGET} MiB. Total: with the set-up."
    return f"### What auto takes\n\n{text}\n\n{_table(rows, 'case')}"


def times_section(results: Results) -> str:
    """Times of a call."""

    def cell(methods: dict[str, Outcome], name: str) -> str:
        about = "≈ " if methods[name]["extrapolated"] else ""
        passes = ratio(methods, name, PASS)
        return f"{about}{_short(passes)} / {_short(ratio(methods, name, PASS32))}"

    return "### Time of a call\n\nIn float64 passes / in float32 passes.\n\n" + _by_method(
        results, cell, [name for name in METHODS if name != PASS], about_case=True
    )


def errors_section(results: Results) -> str:
    """Errors in x."""

    def cell(methods: dict[str, Outcome], name: str) -> str:
        short = "" if methods[name]["converged"] else " (not converged)"
        return f"{value(methods, name, 'error'):.0e}{short}"

    names = [name for name in METHODS if name not in (PASS, PASS32, PRODUCT)]
    return f"### Error in x\n\n{_by_method(results, cell, names)}"


def set_up_section(results: Results) -> str:
    """Seconds of the set-up, and memory."""

    def cell(methods: dict[str, Outcome], name: str) -> str:
        outcome = methods[name]
        set_up = f"{_short(outcome['set_up'])} s, " if name in OURS else ""
        return f"{set_up}{outcome['mib']:.0f} MiB"

    names = [name for name in METHODS if name not in (PASS, PASS32, PRODUCT)]
    text = "Seconds of the set-up, ours only, and peak memory of set-up and call above the data."
    return f"### Set-up and memory\n\n{text}\n\n{_by_method(results, cell, names)}"


# Cells --------------------------------------------------------------------------------


def _by_method(
    results: Results,
    cell: Callable[[dict[str, Outcome], str], str],
    names: list[str],
    about_case: bool = False,
) -> str:
    rows = {}
    for case, entry in results:
        methods = entry["methods"]
        row = {}
        if about_case:
            row = {
                "condition": f"{entry['condition']:.2g}",
                "pass, s": _short(value(methods, PASS, "seconds")),
            }
        for name in names:
            row[name] = methods[name].get("failed") or cell(methods, name)
        rows[_label(case)] = row
    return _table(rows, "case")


def _label(case: Case) -> str:
    parts = [case.layer_name, f"N {case.n_samples:,}"]
    if case.size:
        parts.insert(1, f"size {case.size}")
    if case.condition is not None:
        parts.append(f"condition {case.condition:g}")
    if case.damping:
        parts.append("λ auto" if case.damping == "auto" else f"λ {case.damping:g} σ_max")
    return ", ".join(parts)


def _short(number: float) -> str:
    if np.isnan(number):
        return "–"
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"


def _table(rows: dict[str, dict[str, str]], index: str) -> str:
    table = pd.DataFrame(rows).T
    lines = [[index, *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
