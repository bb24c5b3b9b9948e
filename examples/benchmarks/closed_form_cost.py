"""What a closed-form sweep costs: time a sample, and memory above the data, at growing sizes.

One sweep over a small CNN (two convolutions, two linear layers), up to the last hidden layer
and up to the output. The time is the processor's, on one thread; the memory is the highest
that a fresh process reached, less what it had reached with the data loaded. That is measured
twice: with an allocator that gives freed memory back at once (in use), and as things are (held).
What is held, but not in use, differs from run to run.

    python examples/benchmarks/closed_form_cost.py
    python examples/benchmarks/closed_form_cost.py --sizes 1000 10000 --runs 5 --output cost.md
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from networks import cnn

from featprop_sklearn import ClosedFormTrainer
from featprop_sklearn.networks import build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import Component, Labelled

SIZES = (1_000, 10_000, 100_000)
#: where the trained part ends, and what that takes
SPLITS = {
    "relu3": "conv1, conv2, hidden: ridge regression",
    "output": "the same, and the output layer: logistic regression",
}
BATCH_SIZE = 256
#: for glibc: blocks from this size on are mapped one by one, and unmapped when they are freed
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
WARM_UP = 100
#: ru_maxrss counts kilobytes, on macOS bytes
MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10


def labelled(n_samples: int, seed: int) -> Labelled:
    """Noise, and labels that a linear map gives it; made without any larger array."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.empty(n_samples, 1, 8, 8)
    y = torch.empty(n_samples, dtype=torch.int64)
    teacher = torch.randn(64, 10, generator=draw)
    for start in range(0, n_samples, BATCH_SIZE):
        rows = slice(start, min(start + BATCH_SIZE, n_samples))
        x[rows].normal_(generator=draw)
        y[rows] = (x[rows].flatten(1) @ teacher).argmax(dim=1)
    return Labelled(x, y, torch.ones(n_samples))


def component(split: str, data: Labelled) -> Component:
    """An untrained network, so that nearly every sample needs a target."""
    torch.manual_seed(0)
    chain = build_chain(cnn(10).eval(), data.inputs[:4])
    stop = chain.names.index(split) + 1
    targets = OutputTargets("multiclass", margin=1.0, multiple=1.0)
    return Component(split, chain[:stop], chain[stop:], data, None, targets)


def sweep(split: str, data: Labelled) -> float:
    """Processor seconds of one sweep."""
    part = component(split, data)
    started = time.process_time()
    ClosedFormTrainer(sweeps=1).train(part, batch_size=BATCH_SIZE)
    return time.process_time() - started


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def measure(split: str, n_samples: int, seed: int) -> dict[str, float]:
    """One sweep in this process, which must be a fresh one."""
    torch.set_num_threads(1)
    data = labelled(n_samples, seed)
    loaded = peak()
    sweep(split, data[:WARM_UP])  # what only the first call takes
    seconds = sweep(split, data)
    return {"seconds": seconds, "memory": peak() - loaded}


def measure_apart(split: str, n_samples: int, seed: int) -> dict[str, float]:
    """Sweeps in processes of their own: one as things are, one that gives memory back."""
    command = [sys.executable, __file__, "--measure", split, str(n_samples), str(seed)]
    found = []
    for settings in ({}, GIVE_BACK):
        environment = {**os.environ, **settings}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
        found.append(json.loads(done.stdout))
    return {**found[0], "in_use": found[1]["memory"]}


def table(measured: pd.DataFrame) -> pd.DataFrame:
    """Medians over runs, and their ratios to the smallest size."""
    medians = measured.groupby(["split", "samples"]).median()
    parts = []
    for split in SPLITS:
        found = medians.loc[split]
        each = 1000 * found["seconds"] / found.index
        in_use = found["in_use"]
        more = 1000 * in_use.diff() / in_use.index.to_series().diff()
        columns = {
            "up to": split,
            "samples": found.index,
            "seconds per 1000": each.map("{:.3f}".format),
            "time ratio": (each / each.iloc[0]).map("{:.2f}".format),
            "MB in use": in_use.map("{:.1f}".format),
            "memory ratio": (in_use / in_use.iloc[0]).map("{:.2f}".format),
            "MB per 1000 more": more.map("{:.3f}".format).replace("nan", ""),
            "MB held": found["memory"].map("{:.1f}".format),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


def markdown(frame: pd.DataFrame) -> str:
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(measured: pd.DataFrame, runs: int) -> str:
    parts = "\n".join(f"- `{split}`: {what}" for split, what in SPLITS.items())
    return (
        "# Cost of a closed-form sweep\n\nWritten by `examples/benchmarks/closed_form_cost.py`. "
        f"One closed-form sweep over a CNN for 8 × 8 images, batches of {BATCH_SIZE}, one thread, "
        f"median of {runs} runs; torch {torch.__version__}.\n\n{parts}\n\n"
        f"{markdown(table(measured))}\n\n"
        "What grows with the samples: the logits, whose spread sets the margin, and at the "
        "output the features of the last layer, for its logistic regression.\n"
    )


def run(sizes: Sequence[int], runs: int) -> pd.DataFrame:
    rows = []
    for seed in range(runs):
        for n_samples in sizes:
            for split in SPLITS:
                found = measure_apart(split, n_samples, seed)
                rows.append({"split": split, "samples": n_samples, **found})
                print(rows[-1], file=sys.stderr)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        split, n_samples, seed = options.measure
        print(json.dumps(measure(split, int(n_samples), int(seed))))
        return
    text = report(run(options.sizes, options.runs), options.runs)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
