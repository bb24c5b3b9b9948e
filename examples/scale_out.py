"""
Scale-out: one fit and a grid search on a Dask cluster
======================================================

A small convolutional network learns digits; then the images are transposed, and come in nine
copies, shifted by up to a pixel. The closed-form trainer repairs the network once in this process
and once on a cluster, whose workers sum what each layer needs to know: the weights are the same to
the last bit. A grid search, on the images where they are, then runs its fits on the same cluster.

Here the cluster is two processes of this machine, for which so little data is hardly worth the way.
For a real one, pass the address of its scheduler to ``Client``; nothing else changes.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from distributed import Client, LocalCluster, get_task_stream
from joblib import parallel_config
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from torch import Tensor, nn

from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier

PRETRAINED_ON, EPOCHS = 500, 20
RIDGES = (1e-5, 1e-3, 1e-1)


def pretrained(X: Tensor, y: Tensor) -> nn.Sequential:
    """Train a network as one does."""
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(256, 32),
            relu3=nn.ReLU(),
            output=nn.Linear(32, 10),
        )
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X)).split(50):
            loss = nn.functional.cross_entropy(network(X[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def shifted(X: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Return nine copies of the images, moved by -1, 0 or 1 pixel each way."""
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return np.concatenate([np.roll(X, move, axis=(2, 3)) for move in moves]), np.tile(y, 9)


def timed_fit(estimator: Any, X: NDArray, y: NDArray) -> tuple[Any, float]:
    """Fit a clone; return it, and the seconds that it took."""
    started = time.perf_counter()
    return clone(estimator).fit(X, y), time.perf_counter() - started


def one_fit(estimator: Any, data: list) -> None:
    """Fit here and on the cluster, and compare."""
    X, X_test, y, y_test = data
    here, seconds = timed_fit(estimator, X, y)
    print(f"  here            {here.score(X_test, y_test):.3f}  {seconds:5.1f} s")
    with parallel_config(backend="dask"), get_task_stream() as tasks:
        there, seconds = timed_fit(estimator, X, y)
    print(f"  on the cluster  {there.score(X_test, y_test):.3f}  {seconds:5.1f} s")
    pairs = zip(here.module_.parameters(), there.module_.parameters(), strict=True)
    print(f"  weights identical: {all(torch.equal(one, other) for one, other in pairs)}")
    by_worker = sorted(Counter(task["worker"] for task in tasks.data).values())
    megabytes = sum(task["nbytes"] for task in tasks.data) / 1e6
    print(f"  tasks a worker: {by_worker}; sums that came back: {megabytes:.1f} MB")


def grid_search(estimator: Any, data: list) -> None:
    """Let cross-validation choose the strength of the ridge regressions, on the cluster."""
    X, X_test, y, y_test = data
    search = GridSearchCV(estimator, {"trainer__ridge": RIDGES}, cv=3)
    with parallel_config(backend="dask"):
        search, seconds = timed_fit(search, X, y)
    for ridge, score in zip(RIDGES, search.cv_results_["mean_test_score"], strict=True):
        print(f"  ridge {ridge:<8g} {score:.3f}")
    print(f"  held-out accuracy of the best: {search.score(X_test, y_test):.3f}  {seconds:5.1f} s")


def main() -> None:
    """Pretrain, transpose, fit here and there, search."""
    torch.set_num_threads(1)  # as the workers do: other thread counts may round otherwise
    digits = load_digits()
    X, y = digits.images[:, None].astype("float32") / 16, digits.target
    X, X_rest, y, y_rest = train_test_split(
        X, y, train_size=PRETRAINED_ON, stratify=y, random_state=0
    )
    network = pretrained(torch.from_numpy(X), torch.from_numpy(y))
    X_rest = X_rest.swapaxes(2, 3)
    X, X_test, y, y_test = train_test_split(
        X_rest, y_rest, test_size=0.4, stratify=y_rest, random_state=0
    )
    with torch.no_grad():
        before = (network(torch.from_numpy(X_test)).argmax(1).numpy() == y_test).mean()
    trainer = ClosedFormTrainer(sweeps=1, multiples=(8.0,))
    estimator = FeatureBackpropClassifier(network, trainer=trainer, random_state=0)
    print(f"Held-out accuracy on transposed images: {before:.3f} as it is")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(torch.set_num_threads, 1)
        (many, labels), (many_test, labels_test) = shifted(X, y), shifted(X_test, y_test)
        print(f"One fit, {len(many)} images:")
        one_fit(estimator, [many, many_test, labels, labels_test])
        print(f"A grid search, {len(X)} images:")
        grid_search(estimator, [X, X_test, y, y_test])


if __name__ == "__main__":
    main()
