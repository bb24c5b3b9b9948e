"""Where should a network have seen something else? Digits that were spoilt in a known place.

A square of three by three pixels of a digit is erased, inverted or filled, so that a network that
had it right takes it for another digit. Then what should have been seen differently is known: the
square. ``attribute(..., "displacement")`` and the other methods are asked for it; these explain the
logit of the network's answer minus that of the label.

    python examples/benchmarks/displacement.py
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attribution_networks
import numpy as np
import pandas as pd
import torch
from networks import cnn, mlp
from numpy.typing import NDArray
from report import markdown
from sklearn.datasets import load_digits
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.inspection import (
    attribute,
    box_masks,
    make_digit_scenes,
    mass_inside,
    pointing_game,
)

PAGE = Path("docs/displacement_benchmark.md")
SIDE, CLASSES, TRAINED_ON = 3, 10, 1000
#: network -> how it is made, and the first layer of its middle split
NETWORKS = {
    "CNN": (lambda: cnn(CLASSES), "pool1"),
    "CNN, BatchNorm": (lambda: cnn(CLASSES, batch_norm=True), "pool1"),
    "MLP": (lambda: nn.Sequential(nn.Flatten(), *mlp(64, CLASSES)), "2"),
}
SPOILT = {
    "erased": lambda square: 0 * square,
    "inverted": lambda square: 1 - square,
    "filled": lambda square: 0 * square + 1,
}
#: method of captum -> whether the sign of its maps means something
RIVALS = {"gradient": False, "integrated_gradients": True, "occlusion": True}

#: columns of the second table
WANTED = {
    "residual": "median residual",
    "cosine": "cosine of the change with the damage undone",
    "ms": "ms an image",
}

#: steps that a network of scenes is trained for: few, so that it overlooks some digits
STEPS, SCENES = 400, 2000
#: split of the third convolution
THIRD = "8"


class Differences(nn.Module):
    """All differences of two logits of a network: that of a and b at 10 a + b."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the differences."""
        logits = self.network(x)
        return (logits[:, :, None] - logits[:, None]).flatten(1)


def trained(make: Callable[[], nn.Module], seed: int, X: NDArray, y: NDArray) -> nn.Module:
    """Train a network."""
    torch.manual_seed(seed)
    network = make()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    images, labels = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(30):
        for rows in torch.randperm(len(X)).split(50):
            loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def spoilt(
    estimator: Any, X: NDArray, y: NDArray, kind: str, n_images: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return images that became wrong, their originals, labels and squares."""
    found: list[tuple[NDArray, NDArray, NDArray, NDArray]] = []
    for top in range(9 - SIDE):
        for left in range(9 - SIDE):
            mask = np.zeros((8, 8), dtype=bool)
            mask[top : top + SIDE, left : left + SIDE] = True
            changed = np.where(mask, SPOILT[kind](X), X).astype(np.float32)
            wrong = estimator.predict(changed) != y
            masks = np.broadcast_to(mask, (wrong.sum(), 8, 8))
            found.append((changed[wrong], X[wrong], y[wrong], masks))
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    chosen = np.random.default_rng(0).choice(len(joined[0]), n_images, replace=False)
    images, originals, labels, masks = (values[chosen] for values in joined)
    return images, originals, labels, masks


def maps(
    estimator: Any, middle: str, X: NDArray, originals: NDArray, y: NDArray
) -> Iterator[tuple[str, NDArray, dict[str, float]]]:
    """Yield method, maps, and what else there is to say."""
    for place, split in {"output": "auto", "middle": middle}.items():
        began = time.process_time()
        found = attribute(estimator, X, "displacement", target=y, split=split, bounds=(0, 1))
        seconds = time.process_time() - began
        assert found.wanted is not None
        moved, undone = found.wanted - X, originals - X
        more = {
            "repaired": np.mean(estimator.predict(found.wanted.astype(np.float32)) == y),
            "cosine": np.mean((moved * undone).sum((1, 2, 3)) / _norms(moved) / _norms(undone)),
            "residual": np.median(found.residual),
            "ms": 1000 * seconds / len(X),
        }
        yield f"displacement, {place}", found.maps, more
        yield f"size of the change, {place}", np.abs(moved).sum(axis=1), {}
    network, answers = estimator.network_, estimator.predict(X)
    for method, signed in RIVALS.items():
        began = time.process_time()
        options = {"window": 2, "stride": 1} if method == "occlusion" else {}
        found = attribute(Differences(network), X, method, target=CLASSES * answers + y, **options)
        seconds = time.process_time() - began
        yield (
            method,
            found.maps if signed else np.abs(found.maps),
            {"ms": 1000 * seconds / len(X)},
        )
    if any(isinstance(part, nn.Conv2d) for part in network.modules()):
        found = attribute(network, X, "rsp", target=answers, hostile=y[:, None])
        yield "rsp", found.maps, {}
    chance = np.random.default_rng(1).uniform(size=(len(X), 8, 8))
    yield "chance", chance, {}


def _norms(images: NDArray) -> NDArray:
    return np.linalg.norm(images.reshape(len(images), -1), axis=1).clip(1e-12)


def measure(n_seeds: int, n_images: int) -> pd.DataFrame:
    """One row for each network, kind of damage and method."""
    data = load_digits()
    X, y = (data.images[:, None] / 16).astype(np.float32), data.target
    rows = []
    for (name, (make, middle)), seed in itertools.product(NETWORKS.items(), range(n_seeds)):
        estimator = FeatureBackpropClassifier(
            trained(make, seed, X[:TRAINED_ON], y[:TRAINED_ON]),
            trainer=GradientTrainer(max_epochs=0),
        ).fit(X[:TRAINED_ON], y[:TRAINED_ON])
        right = estimator.predict(X[TRAINED_ON:]) == y[TRAINED_ON:]
        held_out, labels = X[TRAINED_ON:][right], y[TRAINED_ON:][right]
        for kind in SPOILT:
            images, originals, asked, masks = spoilt(estimator, held_out, labels, kind, n_images)
            for method, found, more in maps(estimator, middle, images, originals, asked):
                scores = {
                    "pointing": np.mean(pointing_game(found, masks)),
                    "inside": np.nanmean(mass_inside(found, masks)),
                }
                row = {"network": name, "seed": seed, "accuracy": right.mean(), "kind": kind}
                rows.append({**row, "method": method, **scores, **more})
        print(f"{name}, seed {seed}: {right.mean():.3f} right", flush=True)
    return pd.DataFrame(rows)


def overlooked(n_seeds: int, n_images: int) -> pd.DataFrame:
    """Ask about scenes of two digits of which a network sees one: where would it see the other?"""
    rows = []
    scenes = make_digit_scenes(SCENES, subset="test", random_state=1)
    boxes = box_masks(scenes.boxes, scenes.images.shape[2:])
    present = np.zeros((SCENES, CLASSES), dtype=int)
    np.put_along_axis(present, scenes.labels, 1, axis=1)
    for seed in range(n_seeds):
        network = attribution_networks.trained(attribution_networks.cnn, seed, STEPS)
        estimator = FeatureBackpropClassifier(network, trainer=GradientTrainer(max_epochs=0))
        estimator.fit(scenes.images[:200], present[:200])
        seen = np.take_along_axis(estimator.predict(scenes.images), scenes.labels, axis=1)
        chosen = np.flatnonzero(seen.sum(axis=1) == 1)[:n_images]
        missed = seen[chosen].argmin(axis=1)
        one, other = boxes[chosen, missed], boxes[chosen, 1 - missed]
        images = scenes.images[chosen]
        for place, split in {"output": "auto", "third convolution": THIRD}.items():
            found = attribute(
                estimator, images, "displacement", target=present[chosen], split=split
            )
            wanted = estimator.predict(found.wanted.astype(np.float32))
            rows.append(
                {
                    "split": place,
                    "scenes": len(chosen),
                    "both seen": (seen.sum(axis=1) == 2).mean(),
                    "points at the overlooked digit": pointing_game(found.maps, one).mean(),
                    "points at the other one": pointing_game(found.maps, other).mean(),
                    "lies on the overlooked digit": np.nanmean(mass_inside(found.maps, one)),
                    "lies on the other one": np.nanmean(mass_inside(found.maps, other)),
                    "wanted images with both": (wanted == present[chosen]).all(axis=1).mean(),
                }
            )
        print(f"scenes, seed {seed}: {rows[-1]}", flush=True)
    return pd.DataFrame(rows)


def page(found: pd.DataFrame, in_scenes: pd.DataFrame, n_images: int) -> str:
    """Write the page."""
    n_networks = len(found.drop_duplicates(["network", "seed"]))
    low, high = found["accuracy"].min(), found["accuracy"].max()
    order = list(dict.fromkeys(found["method"]))
    places = {}
    for score, title in {"pointing": "points at it", "inside": "lies in it"}.items():
        for kind in SPOILT:
            of_kind = found[found["kind"] == kind].groupby("method")[score]
            mean, deviation = of_kind.mean(), of_kind.std()
            places[f"{kind}: {title}"] = [f"{mean[m]:.2f} ± {deviation[m]:.2f}" for m in order]
    ours = found.dropna(subset="residual").groupby(["kind", "method"])
    said = ours[["residual", "repaired", "cosine", "ms"]].mean().round(2)
    said.index = [f"{kind}, {method.split(', ')[1]}" for kind, method in said.index]
    said = said.rename(columns=WANTED)
    cost = found.groupby("method")["ms"].mean().round(1)
    by_split = in_scenes.drop(columns=["scenes", "both seen"]).groupby("split").mean()
    times = ", ".join(f"{method} {cost[method]} ms" for method in RIVALS)
    parts = [
        "# Benchmark of displacement attribution",
        f"Written by `examples/benchmarks/displacement.py` (torch {torch.__version__}). "
        f"{n_networks} small networks ({'; '.join(NETWORKS)}; {found['seed'].nunique()} seeds "
        f"each), {low:.2f} to {high:.2f} right on digits of 8 × 8 pixels that they were not "
        f"trained on. A square of {SIDE} × {SIDE} pixels of a digit that a network had right is "
        f"erased, inverted or filled; {n_images} digits are drawn of those that the network then "
        "takes for others. What it should have seen differently is the square, "
        f"{SIDE**2} of 64 pixels.",
        '*Displacement* is `attribute(estimator, X, "displacement", target=y, bounds=(0, 1))` at '
        "the output or behind the first third of the network, *size of the change* what its "
        "wanted images change, without their effect. The others explain why the logit of the "
        "answer is above that of the label: `gradient` by its absolute value, `rsp` "
        "(convolutional networks) with the label as hostile class, `occlusion` by windows of "
        "2 × 2. For each map: does its maximum lie in the square, and how much of its positive "
        "part does?",
        "## Is the place found?",
        markdown(pd.DataFrame(places, index=order), "method"),
        "Mean ± standard deviation over the networks.",
        "## Does the wanted image undo the damage?",
        markdown(said, "damage, split"),
        "*Repaired*: share of the wanted images that the network takes for their labels. The "
        "residual is the share of the displacement that they do not meet. Processor time of one "
        f"thread, targets included; of the other methods: {times}.",
        "## Is it where the object is?",
        "Scenes of two digits (`make_digit_scenes`), and the CNN of the attribution benchmark, "
        f"trained for {STEPS} steps with {len(in_scenes) // 2} seeds: it sees both digits in "
        f"{in_scenes['both seen'].min():.2f} to {in_scenes['both seen'].max():.2f} of the scenes. "
        f"It is asked about {in_scenes['scenes'].min()} scenes of each of which it overlooks one; "
        "the target is that both are there. A box is 14 % of a scene.",
        markdown(by_split.round(2), "split"),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.seeds, arguments.images)
    in_scenes = overlooked(arguments.seeds, arguments.images // 4)
    PAGE.write_text(page(found, in_scenes, arguments.images))


if __name__ == "__main__":
    main()
