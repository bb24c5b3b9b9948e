"""Training for interpretable gradients against standard training, on digits.

Two convolutional networks are trained from the same start, on the same rows, in the same order,
with and without the regularisation; both the accuracy on the test rows and what saliency maps
of them are worth go to the page.

    python examples/benchmarks/interpretable_gradients.py                 # what is missing; page
    python examples/benchmarks/interpretable_gradients.py --seeds 0       # one seed
    python examples/benchmarks/interpretable_gradients.py --report        # the page alone
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
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
STANDARD, PUBLISHED = "standard", "cosine, λ = 0.0075"
#: name -> error function and its weight
VARIANTS: dict[str, tuple[str | None, float]] = {
    STANDARD: (None, 0.0),
    PUBLISHED: ("cosine", 7.5e-3),
    "cosine, λ = 0.1": ("cosine", 0.1),
    "cosine, λ = 1": ("cosine", 1.0),
    "histogram_intersection, λ = 0.1": ("histogram_intersection", 0.1),
    "mae, λ = 1": ("mae", 1.0),
    "mse, λ = 10": ("mse", 10.0),
}
METHODS = {"grad_cam": "Grad-CAM", "gradient": "gradient", "absolute": "absolute gradient"}
#: columns of a report -> how they are called, decimals, and whether more is better
MEASURES = {
    "insertion": ("insertion ↑", 3, True),
    "deletion": ("deletion ↓", 3, False),
    "average_drop": ("average drop ↓", 1, False),
    "average_gain": ("average gain ↑", 1, True),
}

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
    X, X_test, y, y_test = _rows(seed)
    torch.manual_seed(seed)
    build, layer = NETWORKS[network]
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
        build(), trainer=trainer, batch_size=BATCH, random_state=seed
    )
    started = time.thread_time()
    estimator.fit(X, y)
    seconds = time.thread_time() - started
    shown = X_test[:EXPLAINED]
    gradient = attribute(estimator, shown, "gradient")
    methods = {
        "grad_cam": attribute(estimator, shown, "grad_cam", layer=layer),
        "gradient": gradient,
        "absolute": replace(gradient, maps=np.abs(gradient.maps)),
    }
    report = make_attribution_report(estimator, shown, methods, target=estimator.predict(shown))
    return {
        "accuracy": float(estimator.score(X_test, y_test)),
        "seconds": seconds,
        "cosine_error": _cosine_error(estimator.network_, X_test, y_test),
        "methods": report[list(MEASURES)].to_dict("index"),
    }


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
        f"Maps explain the predicted class on {EXPLAINED} test images. In brackets: "
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
            for i, variant in enumerate(VARIANTS):
                path = options.results / f"{network}_{i}_{seed}.json"
                if not path.exists():
                    found = measure(network, variant, seed)
                    entry = {"network": network, "variant": variant, "seed": seed, **found}
                    path.write_text(json.dumps(entry, indent=1) + "\n")
                    print(network, variant, seed, found["accuracy"], flush=True)
    write_page(options.results, options.output)


if __name__ == "__main__":
    main()
