"""Memory of a fit on rows that are read from a file, against rows in memory, at growing sizes.

Handwritten digits, turned into as many rows as are asked for by small random changes of their
brightness, lie in one file, their pixels in another order than the network knows. A small MLP
is post-trained on them in a fresh process. Counted is the memory that is the process's own
(anonymous pages, sampled every 20 ms): pages of the mapped file are not, which the system may
take back at any time. What the process holds before the fit is taken off. Linux only.

    python examples/benchmarks/large_data.py
    python examples/benchmarks/large_data.py --sizes 10000 100000 --output docs/large_data_cost.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from featprop_sklearn import (
    AutoTrainer,
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    GradientTrainer,
)

SIZES = (10_000, 100_000, 1_000_000)
KINDS = ("array in memory", "memory map", "Dataset")
#: trainer, and the split: the gradient trainer stores its targets, 32 numbers a row
TRAINERS: dict[str, tuple[Any, str]] = {
    "closed form, one sweep": (ClosedFormTrainer(sweeps=1, multiples=(8.0,)), "output"),
    "auto": (AutoTrainer(), "output"),
    "gradient, 2 epochs": (GradientTrainer(max_epochs=2, lr=1e-3), "relu2"),
}
BATCH_SIZE = 1024
MEGABYTE = 2**20


class FileRows(Dataset):
    """Pairs of a sample and its label, one by one out of two files."""

    def __init__(self, folder: Path) -> None:
        self.x = np.load(folder / "x.npy", mmap_mode="r")
        self.y = np.load(folder / "y.npy")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[NDArray, int]:
        return np.array(self.x[index]), int(self.y[index])


def digits() -> tuple[NDArray, NDArray]:
    """Digits as rows of 64 numbers in [0, 1]."""
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def write_rows(folder: Path, n_samples: int, seed: int = 0) -> None:
    """Write rows and labels, a part at a time."""
    X, y = digits()
    draw = np.random.default_rng(seed)
    order = draw.permutation(64)
    rows = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (n_samples, 64))
    labels = np.empty(n_samples, dtype=np.int64)
    for start in range(0, n_samples, 10_000):
        part = slice(start, min(start + 10_000, n_samples))
        chosen = draw.integers(len(X), size=part.stop - part.start)
        noise = draw.normal(0, 0.1, (len(chosen), 64))
        rows[part] = (X[chosen] + noise)[:, order]
        labels[part] = y[chosen]
    np.save(folder / "y.npy", labels)


def pretrained(seed: int = 0) -> nn.Module:
    """Return a small MLP that knows the digits as they are."""
    X, y = map(torch.from_numpy, digits())
    torch.manual_seed(seed)
    network = nn.Sequential()
    for name, layer in [
        ("hidden1", nn.Linear(64, 64)),
        ("relu1", nn.ReLU()),
        ("hidden2", nn.Linear(64, 32)),
        ("relu2", nn.ReLU()),
        ("output", nn.Linear(32, 10)),
    ]:
        network.add_module(name, layer)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X), y).backward()
        optimizer.step()
    return network


def own_memory() -> float:
    """Return the anonymous memory of this process, in megabytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / MEGABYTE


@contextmanager
def highest_memory() -> Iterator[list[float]]:
    """Collect samples of the memory while the block runs."""
    samples, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            samples.append(own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def measure(folder: Path, kind: str, trainer: str) -> dict[str, float]:
    """Fit once in this process."""
    torch.set_num_threads(1)
    X: Any = np.load(folder / "x.npy", mmap_mode=None if kind == KINDS[0] else "r")
    y: Any = np.load(folder / "y.npy")
    if kind == "Dataset":
        X, y = FileRows(folder), None
    chosen, split = TRAINERS[trainer]
    network = pretrained()
    before = own_memory()
    estimator = FeatureBackpropClassifier(
        network, split=split, trainer=chosen, batch_size=BATCH_SIZE, random_state=0
    )
    started = time.process_time()
    with highest_memory() as samples:
        estimator.fit(X, y)
    seconds = time.process_time() - started
    test = np.load(folder / "x.npy", mmap_mode="r")[:10_000]
    return {
        "seconds": seconds,
        "megabytes": max(samples) - before,
        "accuracy": estimator.score(test, np.load(folder / "y.npy")[:10_000]),
    }


def run(sizes: Sequence[int], kinds: Sequence[str], trainers: Sequence[str]) -> pd.DataFrame:
    """Measure every case in a process of its own."""
    rows = []
    for n_samples in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_rows(Path(name), n_samples)
            for trainer in trainers:
                for kind in kinds:
                    command = [sys.executable, __file__, "--measure", name, kind, trainer]
                    out = subprocess.run(command, check=True, capture_output=True, text=True)
                    found = json.loads(out.stdout.splitlines()[-1])
                    rows.append({"trainer": trainer, "rows": n_samples, "X": kind, **found})
                    print(rows[-1], file=sys.stderr)
    return pd.DataFrame(rows)


def page(table: pd.DataFrame) -> str:
    """Write the figures as Markdown."""
    lines = [
        "# Memory of a fit on many rows",
        "",
        f"Written by `examples/benchmarks/large_data.py`: an MLP of 64-64-32-10 units, rows of 64 "
        f"float32 numbers (256 MB a million), batch_size={BATCH_SIZE}, one thread, torch "
        f"{torch.__version__}. MB are what the fit takes above what the process held before, pages "
        "of the mapped file not counted; seconds are the processor's; accuracy is on 10,000 of the "
        "rows.",
        "",
        "| trainer | rows | X | MB | seconds | accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.trainer} | {row.rows:,} | {row.X} | {row.megabytes:.0f} | {row.seconds:.1f} "
        f"| {row.accuracy:.3f} |"
        for row in table.itertuples()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--trainers", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "KIND", "TRAINER"))
    given = parser.parse_args()
    if given.measure:
        folder, kind, trainer = given.measure
        print(json.dumps(measure(Path(folder), kind, trainer)))
        return
    text = page(run(given.sizes, given.kinds, given.trainers))
    print(text)
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
