"""The picture: what a nearest preimage costs, in forward and adjoint passes, by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inversion_bars import measured, ratio
from inversion_cases import Case
from inversion_methods import PASS
from inversion_ours import AUTO

#: label, colour (Okabe and Ito's, told apart by most eyes), marker and line
STYLES = {
    AUTO: ("ours, auto", "#000000", "o", "-"),
    "fft_pad": ("fft_pad (not exact)", "#E69F00", "s", "--"),
    "cg": ("cg, 100 steps", "#0072B2", "^", "-."),
    "lsqr loop": ("loop of SciPy's lsqr", "#009E73", "D", ":"),
    "exact_matrix": ("exact_matrix", "#D55E00", "v", (0, (5, 1, 1, 1, 1, 1))),
}
N_SAMPLES = 64


def draw(results: list[tuple[Case, dict[str, Any]]], path: Path) -> bool:
    """Draw 2→1 and 2→4 side by side; return whether there was anything to draw."""
    from matplotlib.figure import Figure

    curves = {outputs: _sizes(results, outputs) for outputs in (1, 4)}
    if not any(curves.values()):
        return False
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (outputs, found) in zip(panels, curves.items(), strict=True):
        for name, (label, colour, marker, line) in STYLES.items():
            points = {
                size: ratio(methods, name, PASS)
                for size, methods in found.items()
                if name in measured(methods)
            }
            style = {"color": colour, "marker": marker, "linestyle": line, "label": label}
            axes.plot(list(points), list(points.values()), markersize=6, **style)
        axes.axhline(1, color="0.5", linewidth=3, alpha=0.5, label="one forward + adjoint pass")
        axes.set(xscale="log", yscale="log", title=f"2→{outputs} channels, 5×5")
        axes.set_xlabel("side of the image")
        axes.set_xticks(list(found), [str(size) for size in found])
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel(f"time of a call / pass (float64, N = {N_SAMPLES})")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    return True


def _sizes(results: list[tuple[Case, dict[str, Any]]], outputs: int) -> dict[int, dict[str, Any]]:
    shown = {
        case.size: entry["methods"]
        for case, entry in results
        if case == Case(2, outputs, N_SAMPLES, size=case.size)
    }
    return dict(sorted(shown.items()))
