"""What post-training a network of ResNet-50's size costs, and which of its layers to refit.

Cost: 512 random images of 64 × 64, 100 classes, one thread. Each method runs in a fresh process,
which says how much memory it took at most, and how much processor time each refit of a layer did,
in units of an epoch of AdamW (float32, batches of 32) on the same images. Choice: see
``layer_choice.py``.

    python examples/benchmarks/big_network.py --output docs/big_network.md
    python examples/benchmarks/big_network.py --seeds 0 --methods "one sweep, all layers"
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import layer_choice
import pandas as pd
import torch
from report import markdown
from torch import Tensor, nn
from torch.nn import functional as F

from featprop_sklearn import AutoTrainer, ClosedFormTrainer, FeatureBackpropClassifier
from featprop_sklearn.training.sweeper import Sweeper

N_IMAGES, SIZE, N_CLASSES = 512, 64, 100
BATCH_SIZE = 32
EPOCHS = 3
#: ru_maxrss counts kilobytes, on macOS bytes
MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10
METHODS: dict[str, Callable[[], Any]] = {
    "one sweep, all layers": lambda: ClosedFormTrainer(sweeps=1, multiples=(8.0,)),
    "`ClosedFormTrainer(max_layers=8)`": lambda: ClosedFormTrainer(max_layers=8),
    "`AutoTrainer()`, the default": AutoTrainer,
}

# The network ------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Convolutions of size 1, 3 and 1 beside a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * width
        self.conv1, self.norm1 = nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2, self.norm3 = nn.BatchNorm2d(width), nn.BatchNorm2d(n_out)
        self.conv3, self.relu = nn.Conv2d(width, n_out, 1, bias=False), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out:
            wider = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(wider, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Add the three convolutions to the shortcut."""
        inner = self.relu(self.norm1(self.conv1(x)))
        inner = self.relu(self.norm2(self.conv2(inner)))
        return self.relu(self.norm3(self.conv3(inner)) + self.shortcut(x))


def resnet50(n_classes: int = N_CLASSES) -> nn.Sequential:
    """Build ResNet-50 (He et al. 2016, doi:10.1109/CVPR.2016.90), stages in a row."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    n_in = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            layers.append(Bottleneck(n_in, width, 1 if i else stride))
            n_in = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    images, labels = torch.randn(N_IMAGES, 3, SIZE, SIZE), torch.arange(N_IMAGES) % N_CLASSES
    return resnet50(), images, labels


# Measuring --------------------------------------------------------------------------------


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def adamw() -> dict[str, Any]:
    """Processor seconds of each epoch."""
    network, images, labels = problem()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-5)
    seconds = []
    for _ in range(EPOCHS):
        started = time.process_time()
        for rows in torch.randperm(N_IMAGES).split(BATCH_SIZE):
            optimiser.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
        seconds.append(time.process_time() - started)
    return {"epochs": seconds}


def post_training(trainer: Any) -> dict[str, Any]:
    """Processor seconds of the whole fit, and of each refit by layer."""
    network, images, labels = problem()
    refits: list[tuple[str, float]] = []
    refit = Sweeper.refit

    def timed(self: Sweeper, site: Any) -> float:
        started = time.process_time()
        ridge = refit(self, site)
        refits.append((site.name, time.process_time() - started))
        print(*refits[-1], file=sys.stderr)
        return ridge

    Sweeper.refit = timed  # type: ignore[method-assign]
    started = time.process_time()
    FeatureBackpropClassifier(network, trainer=trainer, random_state=0).fit(images, labels)
    return {"fit": time.process_time() - started, "refits": refits}


def measure(method: str) -> dict[str, Any]:
    """Run a method in this process, which must be a fresh one."""
    torch.set_num_threads(1)
    imported = peak()
    found = adamw() if method == "adamw" else post_training(METHODS[method]())
    return {**found, "imported": imported, "peak": peak()}


def measure_apart(method: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", method]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


# Report -----------------------------------------------------------------------------------


def row(found: dict[str, Any], epoch: float) -> dict[str, str]:
    """One method of the table, times in epochs."""
    refits = [(name, seconds / epoch) for name, seconds in found["refits"]]
    name, worst = max(refits, key=lambda refit: refit[1])
    layers, costs = {name for name, _ in refits}, [cost for _, cost in refits]
    return {
        "layers": str(len(layers)),
        "refits": str(len(refits)),
        "median refit": f"{median(costs):.2f}",
        "worst refit": f"{worst:.2f} (`{name}`)",
        "whole fit": f"{found['fit'] / epoch:.0f}",
        "per refit": f"{found['fit'] / epoch / len(refits):.2f}",
        "peak memory": f"{found['peak']:.0f} MB",
        "above imports": f"{found['peak'] - found['imported']:.0f} MB",
    }


def cost_section(measured: dict[str, Any]) -> str:
    baseline = measured["adamw"]
    epoch = median(baseline["epochs"])
    rows = {name: row(measured[name], epoch) for name in METHODS if name in measured}
    n_parameters = sum(parameter.numel() for parameter in resnet50().parameters())
    return (
        f"## Cost\n\nResNet-50 for {N_CLASSES} classes ({n_parameters / 1e6:.1f} million "
        f"parameters), {N_IMAGES} random images of {SIZE} × {SIZE}, a quarter of them held out as "
        "ever, one thread. Processor times in epochs of AdamW on all the images (float32, batches "
        f"of {BATCH_SIZE}; {epoch:.1f} s here, with {baseline['peak']:.0f} MB at most, "
        f"{baseline['peak'] - baseline['imported']:.0f} above imports). "
        "*Refit*: targets, sums and ridge regression of one layer; *whole fit*: all else too, "
        "such as BatchNorm statistics, logistic regressions, and the automatic trainer's polish.\n"
        f"\n{markdown(pd.DataFrame.from_dict(rows, orient='index'), 'method')}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, help="networks of the choice of layers")
    parser.add_argument("--results", type=Path, help="JSON file that keeps what was measured")
    parser.add_argument("--output", type=Path, help="write the page to this file too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    kept = options.results
    measured = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for part in ("adamw", *options.methods, *(["choice"] if options.seeds else [])):
        if part not in measured:
            choice = part == "choice"
            measured[part] = layer_choice.measure(options.seeds) if choice else measure_apart(part)
            if kept:
                kept.write_text(json.dumps(measured))
    text = (
        "# Large networks\n\nWritten by `examples/benchmarks/big_network.py` (torch "
        f"{torch.__version__}).\n\n{cost_section(measured)}"
    )
    if "choice" in measured:
        text += f"\n{layer_choice.section(measured['choice'])}"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
