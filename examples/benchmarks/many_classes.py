"""What joint targets cost with 1000 classes, in units of one forward and backward pass.

Three handwritten digits side by side are one of 1000 classes. Their network is an MLP or a CNN,
trained or not. Counted are the samples that lack the margin: the joint step (one linearisation,
what a closed-form sweep asks for at each layer), the whole search for targets, and as the unit
one forward pass and one backward pass to the feature. Ratios of medians of processor time, on
one thread; memory is what a forked process had at most, less what it had before.

    python examples/benchmarks/many_classes.py
    python examples/benchmarks/many_classes.py --networks mlp --runs 5 --output docs/many_classes.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from featprop_sklearn.networks import Chain, build_chain
from featprop_sklearn.output_targets import OutputTargets, auto_margin
from featprop_sklearn.propagation import nearest_acceptable

N_TRAIN, EPOCHS, BATCH_SIZE, RATE = 40_000, 10, 256, 3e-3
#: samples of a joint step, and of a search
STEP_ROWS, SEARCH_ROWS = 256, 30
#: margins, in units of the logits' spread
MULTIPLES = (1.0, 4.0)
PRECISIONS = (torch.float32, torch.float64)
#: where targets are wanted; of these, what comes before an activation is what sweeps refit
SPLITS = {
    "mlp": ("hidden1", "relu1", "hidden2", "relu2"),
    "cnn": ("conv1", "conv2", "relu2", "hidden", "relu3"),
}
#: ru_maxrss counts kilobytes, on macOS bytes
MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10


def triples(n_samples: int, half: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of three digits, 8 × 24, and the numbers 0 to 999 that they show."""
    digits = load_digits()
    images, names = digits.images[half::2] / 16, digits.target[half::2]
    pick = np.random.default_rng(seed).choice(len(images), (n_samples, 3))
    x = np.concatenate([images[pick[:, place]] for place in range(3)], axis=2)
    return torch.from_numpy(x[:, None]).float(), torch.from_numpy(names[pick] @ [100, 10, 1])


def mlp() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Linear(192, 256),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(256, 128),
            relu2=nn.ReLU(),
            output=nn.Linear(128, 1000),
        )
    )


def cnn() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(384, 128),
            relu3=nn.ReLU(),
            output=nn.Linear(128, 1000),
        )
    )


def train(network: nn.Module, n_samples: int) -> None:
    x, y = triples(n_samples, half=0, seed=0)
    n_steps = EPOCHS * -(-n_samples // BATCH_SIZE)
    optimiser = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=n_steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH_SIZE):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()


def seconds(work: Callable[[], Any], runs: int) -> float:
    """Processor time, the median."""
    work()  # what only the first call takes
    taken = []
    for _ in range(runs):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return float(np.median(taken))


def megabytes(work: Callable[[], Any]) -> float:
    """The most memory that a forked process took for it."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    process = context.Process(target=child)
    process.start()
    taken = receive.recv()
    process.join()
    return taken / MEGABYTE


def forward_and_backward(tail: Chain, x: Tensor) -> Callable[[], None]:
    def work() -> None:
        point = x.clone().requires_grad_()
        tail(point.clone()).sum().backward()

    return work


class Case:
    """Samples of one network that lack the margin, and the way on from one split."""

    def __init__(self, chain: Chain, split: str, multiple: float, n_samples: int) -> None:
        dtype = next(chain[-1].module.parameters()).dtype
        x, y = triples(4 * STEP_ROWS, half=1, seed=1)
        x = x.to(dtype)
        output = chain(x)
        self.targets = OutputTargets("multiclass", margin=multiple * auto_margin(output))
        conditions = self.targets.conditions(output, y)
        lacking = (conditions.slack(output) < 0).sum(dim=1)
        rows = torch.nonzero(lacking)[:n_samples, 0]
        self.violated = int(lacking[rows].median())
        self.x, self.y, self.output = x[rows], y[rows], output[rows]
        at = chain.names.index(split) + 1
        self.chain, self.after, self.feature = chain, chain[at:], chain[:at](self.x)
        self.allowed = (0, torch.inf) if split.startswith("relu") else None

    def find(self, **options: int) -> Tensor:
        """Targets of the samples."""
        return nearest_acceptable(
            lambda value, rows: self.after(value),
            self.feature,
            self.output,
            self.y,
            self.targets,
            allowed=self.allowed,
            **options,
        ).targets

    def step(self) -> Tensor:
        """First-order targets."""
        return self.find(max_steps=1, refinements=0)


def step_row(case: Case, runs: int) -> dict[str, Any]:
    """What one joint step costs."""
    step = seconds(case.step, runs)
    return {
        "samples": len(case.x),
        "violated": case.violated,
        "from the split": step / seconds(forward_and_backward(case.after, case.feature), runs),
        "whole network": step / seconds(forward_and_backward(case.chain, case.x), runs),
        "MB": megabytes(case.step),
    }


def search_row(case: Case) -> dict[str, Any]:
    """Where the search gets to, and what it costs; once."""
    started = time.thread_time()
    found = case.find()
    taken = time.thread_time() - started
    move = (found - case.feature).flatten(1).norm(dim=1)
    return {
        "reached": float(case.targets.reached(case.after(found), case.y).double().mean()),
        "relative move": float((move / case.feature.flatten(1).norm(dim=1)).median()),
        "search": taken / seconds(forward_and_backward(case.chain, case.x), 5),
    }


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    x, y = triples(2000, half=1, seed=2)
    return float((network(x).argmax(dim=1) == y).double().mean())


def run(networks: Sequence[str], runs: int, n_train: int) -> pd.DataFrame:
    rows = []
    for name in networks:
        for trained in (False, True):
            torch.manual_seed(0)
            network = {"mlp": mlp, "cnn": cnn}[name]()
            if trained:
                train(network, n_train)
            network.eval().requires_grad_(False)
            label = f"{name}, {'trained' if trained else 'untrained'}"
            label += f" (accuracy {accuracy(network):.2f})"
            for dtype in PRECISIONS:
                chain = build_chain(network.to(dtype), triples(4, 1, 0)[0].to(dtype))
                for multiple in MULTIPLES:
                    for split in SPLITS[name]:
                        row = {"network": label, "split": split, "margin": multiple}
                        row |= {"precision": str(dtype).removeprefix("torch.")}
                        row |= step_row(Case(chain, split, multiple, STEP_ROWS), runs)
                        row |= search_row(Case(chain, split, multiple, SEARCH_ROWS))
                        rows.append(row)
                        print(row, file=sys.stderr)
            network.float()
    return pd.DataFrame(rows)


FORMATS = {
    "margin": "{:g}",
    "from the split": "{:.1f}",
    "whole network": "{:.1f}",
    "MB": "{:.0f}",
    "reached": "{:.2f}",
    "relative move": "{:.2f}",
    "search": "{:.0f}",
}


def markdown(frame: pd.DataFrame) -> str:
    shown = frame.copy()
    for column, style in FORMATS.items():
        shown[column] = frame[column].map(style.format)
    lines = [shown.columns, ["---"] * len(shown.columns), *shown.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(measured: pd.DataFrame, runs: int) -> str:
    ranged = measured["split"].str.startswith("relu")
    free, kept = (
        " and ".join(f"{ratio:.1f}" for ratio in rows[["from the split", "whole network"]].max())
        for rows in (measured[~ranged], measured[ranged])
    )
    return (
        "# A thousand classes\n\nWritten by `examples/benchmarks/many_classes.py`. Real images of "
        "three digits; only samples that lack the margin; one thread, ratios of medians of "
        f"{runs} runs, the search once; torch {torch.__version__}.\n\n"
        "- `violated`: competitors within the margin, of 999, in the median sample\n"
        "- `from the split`, `whole network`: time of the joint step over that of one forward and "
        f"one backward pass; at most {free} at the layers that a closed-form sweep refits, {kept} "
        "behind a ReLU, whose targets must not be negative\n"
        "- `MB`: most memory that the joint step took\n"
        "- `reached`, `relative move`: share of the samples whose targets, found by the whole "
        "search, give the label its margin; their median displacement over the feature's norm\n"
        "- `search`: time of the search over that of one pass of the whole network\n\n"
        f"{markdown(measured)}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=tuple(SPLITS), choices=tuple(SPLITS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--train", type=int, default=N_TRAIN, help="images to train on")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = report(run(options.networks, options.runs, options.train), options.runs)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
