"""Training for interpretable gradients against standard training, on digits.

Two convolutional networks are trained from the same start, on the same rows, in the same order,
with and without the regularisation; both the accuracy on the test rows and what saliency maps
of them are worth go to the page: to the network itself, which the training may have made react
to masked images in another way, and to a judge, a network of standard training from another start.

    python examples/benchmarks/interpretable_gradients.py                 # what is missing; page
    python examples/benchmarks/interpretable_gradients.py --seeds 0       # one seed
    python examples/benchmarks/interpretable_gradients.py --report        # the page alone
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from report import markdown
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.inspection import attribute, make_attribution_report
from featprop_sklearn.training.interpretable import gradient_errors, input_gradients

SEEDS, EPOCHS, RATE, BATCH, TESTED, EXPLAINED = range(5), 30, 1e-2, 64, 600, 300
CACHE, PAGE = Path(".cache/interpretable_gradients"), Path("docs/interpretable_gradients.md")
STANDARD = "standard"
#: error functions and their weights; the publication takes the cosine error at 0.0075
ERRORS = (
    *(("cosine", weight) for weight in (1e-3, 2.5e-3, 5e-3, 7.5e-3, 1e-2, 0.1, 1.0)),
    *(("histogram_intersection", 0.1), ("mae", 1.0), ("mse", 10.0)),
)
#: name -> error function and its weight
VARIANTS: dict[str, tuple[str | None, float]] = {
    STANDARD: (None, 0.0),
    **{f"{name}, λ = {weight:g}": (name, weight) for name, weight in ERRORS},
}
#: the judge of a seed starts from its seed and this
JUDGE = 1000
METHODS = {"grad_cam": "Grad-CAM", "gradient": "gradient", "absolute": "absolute gradient"}
#: columns of a report -> how they are called, decimals, and whether more is better
OWN = {
    "insertion": ("insertion ↑", 3, True),
    "deletion": ("deletion ↓", 3, False),
    "average_drop": ("average drop ↓", 1, False),
    "average_gain": ("average gain ↑", 1, True),
}
JUDGED = {
    "insertion": ("judge's insertion ↑", 3, True),
    "deletion": ("judge's deletion ↓", 3, False),
}
MEASURES = {**OWN, **{f"judged_{name}": shown for name, shown in JUDGED.items()}}

# Networks ---------------------------------------------------------------------------------


def convolution(n_in: int, n_out: int, size: int = 3, **options: Any) -> list[nn.Module]:
    """Convolution and BatchNorm."""
    layer = nn.Conv2d(n_in, n_out, size, padding=size // 2, bias=False, **options)
    return [layer, nn.BatchNorm2d(n_out)]


class InvertedResidual(nn.Module):
    """The block of MobileNet-V2."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        wide = 3 * n_in
        self.main = nn.Sequential(
            *(*convolution(n_in, wide, 1), nn.ReLU6(inplace=True)),
            *(*convolution(wide, wide, stride=stride, groups=wide), nn.ReLU6(inplace=True)),
            *convolution(wide, n_out, 1),
        )
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block computes to its input, if that has the same shape."""
        return x + self.main(x) if self.is_residual else self.main(x)


def _pooled(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def cnn() -> nn.Sequential:
    """Three convolutions."""
    return nn.Sequential(
        *(*convolution(1, 12), nn.ReLU(inplace=True)),
        *(*convolution(12, 24), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(*convolution(24, 48), nn.ReLU(inplace=True), *_pooled(48)),
    )


def plain_cnn() -> nn.Module:
    """The same without BatchNorm."""
    return nn.Sequential(*(layer for layer in cnn() if not isinstance(layer, nn.BatchNorm2d)))


def mobile_net() -> nn.Module:
    """Two blocks of MobileNet-V2 between two convolutions."""
    return nn.Sequential(
        *(*convolution(1, 12), nn.ReLU6(inplace=True)),
        *(InvertedResidual(12, 12, 1), InvertedResidual(12, 24, 2)),
        *(*convolution(24, 48, 1), nn.ReLU6(inplace=True), *_pooled(48)),
    )


#: name -> the network, and the path of its last feature map, for Grad-CAM
NETWORKS = {
    "CNN": (cnn, "9"),
    "CNN without BatchNorm": (plain_cnn, "6"),
    "MobileNet": (mobile_net, "7"),
}

# Measurements -----------------------------------------------------------------------------


def measure(network: str, variant: str, seed: int) -> dict[str, Any]:
    """Train one network, and explain what it predicts on rows that it was not trained on."""
    X_test, y_test = _rows(seed)[1::2]
    started = time.thread_time()
    estimator = train(network, variant, seed, start=seed)
    seconds = time.thread_time() - started
    shown = X_test[:EXPLAINED]
    gradient = attribute(estimator, shown, "gradient")
    methods = {
        "grad_cam": attribute(estimator, shown, "grad_cam", layer=NETWORKS[network][1]),
        "gradient": gradient,
        "absolute": replace(gradient, maps=np.abs(gradient.maps)),
    }
    target, judged_by = estimator.predict(shown), judge(network, seed).predict_proba
    own = make_attribution_report(estimator, shown, methods, target=target)
    judged = make_attribution_report(
        estimator, shown, methods, target=target, predict_proba=judged_by
    )
    report = own[list(OWN)].join(judged[list(JUDGED)].add_prefix("judged_"))
    return {
        "accuracy": float(estimator.score(X_test, y_test)),
        "seconds": seconds,
        "cosine_error": _cosine_error(estimator.network_, X_test, y_test),
        "methods": report.to_dict("index"),
    }


def train(network: str, variant: str, seed: int, start: int) -> FeatureBackpropClassifier:
    """Train one network on the rows of a seed; weights and order are drawn from ``start``."""
    X, _, y, _ = _rows(seed)
    torch.manual_seed(start)
    name, weight = VARIANTS[variant]
    trainer = GradientTrainer(
        alpha=0,
        max_epochs=EPOCHS,
        lr=RATE,
        schedule="one_cycle",
        gradient_regularization=name,
        gradient_weight=weight,
    )
    estimator = FeatureBackpropClassifier(
        NETWORKS[network][0](), trainer=trainer, batch_size=BATCH, random_state=start
    )
    return estimator.fit(X, y)


@cache
def judge(network: str, seed: int) -> FeatureBackpropClassifier:
    """Return a network of standard training, by which the maps of all others are judged."""
    return train(network, STANDARD, seed, start=seed + JUDGE)


def _cosine_error(network: nn.Module, X: NDArray, y: NDArray) -> float:
    """Mean of 1 − cos between gradient and guided gradient of the loss, on test images."""
    x = torch.from_numpy(X).requires_grad_()
    logits = network(x)
    losses = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
    return float(gradient_errors("cosine", *input_gradients(losses, logits, x)).detach().mean())


def _rows(seed: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) - images.mean()) / images.std()
    return train_test_split(
        images.astype(np.float32), labels, test_size=TESTED, random_state=seed, stratify=labels
    )


# Page -------------------------------------------------------------------------------------


def write_page(results: Path, page: Path) -> None:
    """Write what the result files hold."""
    entries = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    found = pd.DataFrame(entries).set_index(["network", "variant", "seed"]).sort_index()
    parts = ["# Training for interpretable gradients", _introduction(found)]
    for network in found.index.unique("network"):
        parts += [f"## {network}", _accuracy(found.loc[network])]
        for method, label in METHODS.items():
            parts += [f"### {label}", _faithfulness(found.loc[network], method)]
    page.write_text("\n\n".join(parts) + "\n")


def _introduction(found: pd.DataFrame) -> str:
    seeds = found.index.get_level_values("seed").nunique()
    return (
        "Written by `examples/benchmarks/interpretable_gradients.py`. Digits of 8 × 8 pixels: "
        f"{TESTED} test images, a quarter of the others held out to choose the epoch; {seeds} "
        "seeds, of the split, the start and the order of the rows. The networks are trained by "
        f"`GradientTrainer(alpha=0, max_epochs={EPOCHS}, lr={RATE:g}, schedule='one_cycle')`, "
        f"batches of {BATCH}, with and without `gradient_regularization`; MobileNet has ReLU6. "
        "*Cosine error* is the mean of 1 − cos between gradient and guided gradient of the loss "
        "on the test images. "
        f"Maps explain the predicted class on {EXPLAINED} test images. Their measures ask the "
        "network itself, which may react to masked images in another way than before, but for "
        "*judge's*: they ask a network of standard training on the same rows from another start, "
        "which tells what the maps are worth by themselves. In brackets: "
        "mean difference from standard training of the same seed ± its standard error, and the "
        "number of seeds in which it is better. torch "
        f"{torch.__version__}."
    )


def _accuracy(found: pd.DataFrame) -> str:
    cells = {
        "test accuracy": _compared(found.accuracy, 4, True),
        "cosine error": _compared(found.cosine_error, 3, False),
        "times standard's time": [
            f"{value:.1f}" for value in _ratios(found.seconds)[_names(found)]
        ],
    }
    return markdown(pd.DataFrame(cells, index=_names(found)), "training")


def _faithfulness(found: pd.DataFrame, method: str) -> str:
    cells = {}
    for measure_, (label, digits, more_is_better) in MEASURES.items():
        values = found.methods.map(lambda row, m=measure_: row[method][m])
        cells[label] = _compared(values, digits, more_is_better)
    return markdown(pd.DataFrame(cells, index=_names(found)), "training")


def _names(found: pd.DataFrame) -> list[str]:
    present = set(found.index.get_level_values("variant"))
    return [name for name in VARIANTS if name in present]


def _ratios(seconds: pd.Series) -> pd.Series:
    return (seconds / seconds.loc[STANDARD]).groupby("variant").median()


def _compared(values: pd.Series, digits: int, more_is_better: bool) -> list[str]:
    """Mean of each variant, and its paired differences from standard training."""
    cells = []
    for name in _names(values.to_frame()):
        mean = f"{values.loc[name].mean():.{digits}f}"
        difference = (values.loc[name] - values.loc[STANDARD]).dropna()
        if name != STANDARD:
            error = difference.std() / np.sqrt(len(difference))
            better = int(((difference > 0) if more_is_better else (difference < 0)).sum())
            mean += f" ({difference.mean():+.{digits}f} ± {error:.{digits}f}, "
            mean += f"{better}/{len(difference)})"
        cells.append(mean)
    return cells


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in [] if options.report else options.seeds:
        for network in options.networks:
            for variant in VARIANTS:
                path = options.results / f"{network}, {variant}, {seed}.json"
                if not path.exists():
                    found = measure(network, variant, seed)
                    entry = {"network": network, "variant": variant, "seed": seed, **found}
                    path.write_text(json.dumps(entry, indent=1) + "\n")
                    print(network, variant, seed, found["accuracy"], flush=True)
    write_page(options.results, options.output)


if __name__ == "__main__":
    main()
