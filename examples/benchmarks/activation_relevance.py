"""Relevance through activations of negative values, handed on as through ReLU.

Small CNNs that differ in their activation alone learn which digits are in a scene of two. The maps
of Relative Sectional Propagation, told both digits, are scored by whether they lie on the one and
speak against the other.

    python examples/benchmarks/activation_relevance.py            # what is missing, and the section
    python examples/benchmarks/activation_relevance.py --report   # the section alone
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from attribution import IMAGES, PAGE, STEPS, TOLERANCE
from attribution_networks import cnn, explained_scenes, trained
from page import write_part
from report import markdown
from torch import nn

from featprop_sklearn.inspection import (
    attribute,
    box_masks,
    class_mean,
    mass_inside,
    pointing_game,
)
from featprop_sklearn.inspection.relevance import pass_through, register_relevance_rule

#: function of torch -> the layer that calls it
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}
SEEDS = range(3)
RESULTS = Path(".cache/activation_relevance")
#: what is measured -> how it is called
COLUMNS = {
    "accuracy": "both digits found",
    "pointing_game": "pointing game ↑",
    "pointing_near": "within 1 px ↑",
    "positive_inside": "positive in target box ↑",
    "negative_inside": "negative in hostile box ↑",
}


def measure(name: str, seed: int, n_images: int, steps: int) -> dict[str, float]:
    """Train one network, and say where the relevance of its scenes lies."""
    network = trained(partial(cnn, ACTIVATIONS[name]), seed, steps)
    scenes, accuracy = explained_scenes(network, n_images)
    if ACTIVATIONS[name] is not nn.ReLU:
        register_relevance_rule(name, pass_through)
    maps = attribute(
        network, scenes.images, target=scenes.target, hostile=scenes.hostile[:, None]
    ).maps
    target, hostile = box_masks(scenes.boxes, maps.shape[1:]).swapaxes(0, 1)
    hits, near = pointing_game(maps, target), pointing_game(maps, target, tolerance=TOLERANCE)
    return {
        "accuracy": accuracy,
        "pointing_game": class_mean(hits, scenes.target),
        "pointing_near": class_mean(near, scenes.target),
        "positive_inside": float(mass_inside(maps, target).mean()),
        "negative_inside": float(mass_inside(-maps, hostile).mean()),
    }


def write_section(results: Path, page: Path) -> None:
    """Write what the result files hold."""
    entries = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    if not entries:
        return
    groups = pd.DataFrame(entries).groupby("activation")[list(COLUMNS)]
    names = [name for name in ACTIVATIONS if name in groups.groups]
    means, deviations = groups.mean().loc[names], groups.std(ddof=0).loc[names]
    cells = means.map("{:.3f} ± ".format) + deviations.map("{:.3f}".format)
    table = cells.rename(columns=COLUMNS, index=lambda name: ACTIVATIONS[name].__name__)
    text = (
        "## Activations of negative values\n\n"
        "Written by `examples/benchmarks/activation_relevance.py`. `rsp`, told both digits, in the "
        "CNNs from above with other activations, whose relevance is handed on by `pass_through` as "
        f"through ReLU. Mean ± standard deviation over {groups.size().max()} networks each.\n\n"
    )
    write_part(page, "activations", text + markdown(table, "activation"))


def main() -> None:
    """Measure what is missing, write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", nargs="*", choices=ACTIVATIONS, default=list(ACTIVATIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--report", action="store_true", help="write the section, measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    for name in [] if options.report else options.activations:
        for seed in options.seeds:
            path = options.results / f"{name}_{seed}.json"
            if not path.exists():
                found = measure(name, seed, options.images, options.steps)
                entry = {"activation": name, "seed": seed, **found}
                path.write_text(json.dumps(entry, indent=1) + "\n")
                print(name, seed, found, flush=True)
    write_section(options.results, options.output)


if __name__ == "__main__":
    main()
