"""
Why a network answered: attribution maps, measured
==================================================

A small network learns which digits are in a scene of two. Where a map should lie is then known, so
methods can be compared by more than looks: with :func:`make_attribution_report`, and by drawing
layers anew (:func:`cascading_randomisation`), after which a map of what the network has learnt
must change. Needs ``pip install 'featprop_sklearn[attribution,plots]'``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.utils import Bunch
from torch import nn

from featprop_sklearn.inspection import (
    AttributionDisplay,
    attribute,
    box_masks,
    cascading_randomisation,
    make_attribution_report,
    make_digit_scenes,
)

STEPS, IMAGES, SHOWN = 400, 100, 5
METHODS = ("rsp", "grad_cam", "guided_backprop", "integrated_gradients")
#: told apart by most eyes, in grey by their dashes, on white and on black
LINES = {
    "rsp": ("#D55E00", "-"),
    "grad_cam": ("#56B4E9", "--"),
    "guided_backprop": ("#009E73", ":"),
    "integrated_gradients": ("#CC79A7", "-."),
}


def trained() -> nn.Module:
    """Train a network whose logits say which digits are there."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )
    scenes = make_digit_scenes(4000, subset="train", random_state=0)
    x, labels = torch.from_numpy(scenes.images), torch.from_numpy(scenes.labels)
    present = torch.zeros(len(x), 10).scatter(1, labels, 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (32,))
        loss = nn.functional.binary_cross_entropy_with_logits(network(x[rows]), present[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def report(network: nn.Module, scenes: Bunch) -> None:
    """Print what the methods are worth."""
    boxes = box_masks(scenes.boxes, scenes.images.shape[2:])
    table = make_attribution_report(
        network,
        scenes.images,
        METHODS,
        target=scenes.target,
        hostile=scenes.hostile[:, None],
        masks=boxes[:, 0],
        hostile_masks=boxes[:, 1],
        predict_proba=lambda X: torch.sigmoid(network(torch.from_numpy(X))).detach().numpy(),
    )
    columns = ["pointing_game", "positive_inside", "negative_inside", "insertion", "deletion"]
    print(table[columns].round(3).to_string())


def draw_maps(network: nn.Module, scenes: Bunch) -> Figure:
    """Draw the scenes, and the maps of each method below."""
    few = {name: values[:SHOWN] for name, values in scenes.items()}
    figure, axes = plt.subplots(
        *(len(METHODS) + 1, SHOWN), figsize=(1.4 * SHOWN, 1.5 * len(METHODS) + 2), squeeze=False
    )
    for row, method in enumerate(METHODS):
        options = {"hostile": few["hostile"][:, None]} if method == "rsp" else {}
        found = attribute(network, few["images"], method, target=few["target"], **options)
        display = AttributionDisplay(
            found.maps,
            images=found.inputs if row == 0 else None,
            titles=[f"{one}, not {other}" for one, other in few["labels"]] if row == 0 else None,
            method=method.replace("_", "\n"),
        )
        display.plot(axes[:2] if row == 0 else axes[row + 1])
    figure.suptitle("Bright: speaks for the digit. Dark: against. Mid-grey: neither.", size=10)
    figure.tight_layout()
    return figure


def draw_check(network: nn.Module, scenes: Bunch) -> Figure:
    """Draw how alike maps stay while layers are drawn anew."""
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.8), sharey=True, layout="constrained")
    for method in METHODS:
        options = {"hostile": scenes.hostile[:, None]} if method == "rsp" else {}
        table = cascading_randomisation(
            *(network, scenes.images, method), target=scenes.target, random_state=0, **options
        )
        colour, line = LINES[method]
        for panel, column in zip(panels, ["spearman", "spearman_abs"], strict=True):
            values = np.r_[1, table[column][:-1]]
            panel.plot(values, color=colour, linestyle=line, linewidth=2.5, label=method)
            panel.set_xticks(range(len(values)), ["none", *table.index[:-1]])
            panel.set_xlabel("last layer drawn anew")
    panels[0].set(ylabel="rank correlation with trained", title="with signs")
    panels[1].set(title="absolute values")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure


def main() -> None:
    """Train, measure, draw; into a folder if one is given."""
    network = trained()
    scenes = make_digit_scenes(IMAGES, subset="test", random_state=1)
    report(network, scenes)
    figures = {"maps": draw_maps(network, scenes), "check": draw_check(network, scenes)}
    if len(sys.argv) > 1:
        for name, figure in figures.items():
            figure.savefig(Path(sys.argv[1]) / f"attribution_{name}.png", dpi=120)
    else:
        plt.show()


if __name__ == "__main__":
    main()
