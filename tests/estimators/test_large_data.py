"""What does not fit in memory gives, bit by bit, what the same rows in memory give."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV
from skorch.dataset import Dataset as SkorchDataset
from skorch.helper import SliceDataset
from torch import nn
from torch.utils.data import Dataset

from featprop_sklearn import (
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    describe,
    feature_gap,
    split_points,
)
from featprop_sklearn.data import sources
from featprop_sklearn.estimators import base, samples

IMAGES, Y = load_digits(return_X_y=True)
IMAGES, Y = (IMAGES[:600] / 16).astype(np.float32).reshape(-1, 1, 8, 8), Y[:600]
BYTES = (16 * IMAGES).astype(np.uint8)


@pytest.fixture(autouse=True)
def little_is_read_at_once(monkeypatch):
    monkeypatch.setattr(sources, "READ_AT_ONCE", 0)
    for module in (samples, base):
        monkeypatch.setattr(module, "EXAMPLES", 64)


@pytest.fixture
def mapped(tmp_path):
    def save(rows):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, rows)
        return np.load(path, mmap_mode="r")

    return save


class Pairs(Dataset):
    """Samples and labels; counts how many samples it was asked for at a time."""

    def __init__(self, rows, labels):
        self.rows, self.labels, self.most = rows, labels, 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(self.rows, dict):
            return {name: rows[index] for name, rows in self.rows.items()}, self.labels[index]
        return self.rows[index], self.labels[index]

    def __getitems__(self, indices):
        self.most = max(self.most, len(indices))
        return [self[index] for index in indices]


def same(one, other):
    """Whether two estimators hold the same network, bit by bit."""
    pairs = zip(one.module_.state_dict().values(), other.module_.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def classifier(cnn, **parameters):
    return FeatureBackpropClassifier(cnn, **{"random_state": 0, "batch_size": 64, **parameters})


@pytest.mark.parametrize(
    ("trainer", "split"),
    [
        ("auto", "auto"),
        (ClosedFormTrainer(sweeps=1), "8"),
        (GradientTrainer(alpha=0.2, max_epochs=2, lr=1e-3), "4"),
        (GradientTrainer(max_epochs=1, lr=1e-3), ["4", "9"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["map", "dataset", "skorch"])
def test_a_fit_is_the_same(cnn, mapped, trainer, split, kind):
    rows = mapped(IMAGES)
    X = {"map": rows, "dataset": Pairs(rows, Y), "skorch": SkorchDataset(rows, Y)}[kind]
    y = Y if kind == "map" else None
    weights = np.random.default_rng(0).integers(0, 3, len(Y))
    in_memory = classifier(cnn, trainer=trainer, split=split).fit(IMAGES, Y, weights)
    lazy = classifier(cnn, trainer=trainer, split=split).fit(X, y, weights)
    assert same(lazy, in_memory)
    assert lazy.n_features_in_ == in_memory.n_features_in_ == 1
    assert lazy.score(X, y) == in_memory.score(IMAGES, Y)
    np.testing.assert_array_equal(lazy.predict_proba(X), in_memory.predict_proba(IMAGES))
    again = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(again.predict(X), in_memory.predict(IMAGES))


def test_never_more_than_a_batch_is_read(cnn):
    dataset = Pairs(IMAGES, Y)
    estimator = classifier(cnn, trainer=ClosedFormTrainer(sweeps=1), split="8")
    estimator.fit(dataset, Y)
    estimator.predict(dataset)
    estimator.set_params(warm_start=True).fit(dataset, Y)
    feature_gap(estimator, dataset, Y)
    assert estimator.feature_targets(dataset, Y).shape == (600, 24)
    assert dataset.most == 64


@pytest.mark.parametrize("propagation", ["joint", "layerwise"])
def test_targets_lie_in_a_file(cnn, mapped, propagation, tmp_path):
    estimator = classifier(cnn, propagation=propagation, trainer=GradientTrainer(max_epochs=0))
    estimator.set_params(split="8", memory=str(tmp_path / "memory")).fit(IMAGES, Y)
    targets = estimator.feature_targets(mapped(IMAGES), Y)
    assert isinstance(targets, np.memmap)
    np.testing.assert_array_equal(targets, estimator.feature_targets(IMAGES, Y))
    gap = feature_gap(estimator, Pairs(IMAGES, Y))
    np.testing.assert_array_equal(gap, feature_gap(estimator, IMAGES, Y))


def test_bytes_become_numbers_batch_by_batch(cnn, mapped):
    scaled = nn.Sequential(nn.AvgPool2d(1), cnn)
    trainer = ClosedFormTrainer(sweeps=1)
    in_memory = classifier(scaled, trainer=trainer).fit(BYTES, Y)
    assert same(classifier(scaled, trainer=trainer).fit(mapped(BYTES), Y), in_memory)


def test_rows_get_the_shape_that_the_network_takes(cnn, mapped):
    flat = mapped(IMAGES.reshape(600, 64))
    trainer = ClosedFormTrainer(sweeps=1)
    estimator = classifier(cnn, trainer=trainer, input_shape=(1, 8, 8)).fit(flat, Y)
    assert same(estimator, classifier(cnn, trainer=trainer).fit(IMAGES, Y))
    assert estimator.n_features_in_ == 64
    with pytest.raises(ValueError, match=r"X has 32 features, but .* is expecting 64"):
        estimator.predict(mapped(IMAGES.reshape(1200, 32)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 2)
        self.image, self.fc = nn.Linear(64, 16), nn.Linear(80, 10)

    def forward(self, image, tokens):
        features = [self.image(image.flatten(1)).relu(), self.embed(tokens).flatten(1)]
        return self.fc(torch.cat(features, dim=1))


def test_several_inputs(mapped):
    torch.manual_seed(0)
    X = {"image": IMAGES, "tokens": BYTES.reshape(600, 64)[:, :32].astype(np.int64)}
    lazily = {"image": mapped(X["image"]), "tokens": X["tokens"]}
    trainer = ClosedFormTrainer(sweeps=1)
    net = TwoInputs()
    in_memory = classifier(net, trainer=trainer).fit(X, Y)
    for rows, y in [(lazily, Y), (Pairs(lazily, Y), None)]:
        estimator = classifier(net, trainer=trainer).fit(rows, y)
        assert same(estimator, in_memory)
        np.testing.assert_array_equal(estimator.predict(rows), in_memory.predict(X))


def test_integers(mapped):
    torch.manual_seed(0)
    tokens = BYTES.reshape(600, 64).astype(np.int64)
    net = nn.Sequential(nn.Embedding(17, 3), nn.Flatten(), nn.Linear(192, 10))
    trainer = ClosedFormTrainer(sweeps=1)
    estimator = classifier(net, trainer=trainer).fit(mapped(tokens), Y)
    assert same(estimator, classifier(net, trainer=trainer).fit(tokens, Y))
    halves = tokens.astype(np.float64)
    halves[333] += 0.5
    with pytest.raises(ValueError, match=r"In rows 300 to 359 of X: .* whole numbers"):
        estimator.set_params(batch_size=60).predict(mapped(halves))


def test_a_regression(mapped):
    X, y = load_diabetes(return_X_y=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    fit = FeatureBackpropRegressor(net, random_state=0)
    in_memory = FeatureBackpropRegressor(net, random_state=0).fit(X, y)
    assert fit.fit(Pairs(mapped(X), y)).score(Pairs(X, y)) == in_memory.score(X, y)
    assert same(fit, in_memory)


def test_a_table_without_a_network(mapped):
    rows = IMAGES.reshape(600, 64)
    lazy = FeatureBackpropClassifier(random_state=0).fit(mapped(rows), Y)
    assert same(lazy, FeatureBackpropClassifier(random_state=0).fit(rows, Y))


@pytest.mark.parametrize("trainer", ["closed_form", "gradient"])
def test_chunks(cnn, mapped, trainer):
    lazy, in_memory = classifier(cnn, trainer=trainer), classifier(cnn, trainer=trainer)
    rows = mapped(IMAGES)
    for part in (slice(0, 300), slice(300, 600)):
        lazy.partial_fit(rows[part], Y[part])
        in_memory.partial_fit(IMAGES[part], Y[part])
    assert same(lazy, in_memory)


def test_worker_processes(cnn, mapped):
    trainer = ClosedFormTrainer(sweeps=1)
    lazy = classifier(cnn, trainer=trainer, n_jobs=2).fit(mapped(IMAGES), Y)
    assert same(lazy, classifier(cnn, trainer=trainer).fit(IMAGES, Y))


def test_a_grid_search_over_slices_of_a_dataset(cnn):
    dataset = SkorchDataset(IMAGES, Y)
    grid = {"split": ["4", "auto"]}
    parameters = {"cv": 2, "error_score": "raise"}
    estimator = classifier(cnn, trainer=ClosedFormTrainer(sweeps=1))
    lazy = GridSearchCV(estimator, grid, **parameters).fit(SliceDataset(dataset, idx=0), Y)
    in_memory = GridSearchCV(estimator, grid, **parameters).fit(IMAGES, Y)
    scores = [search.cv_results_["mean_test_score"] for search in (lazy, in_memory)]
    np.testing.assert_array_equal(*scores)


def test_tables_of_a_network_from_a_dataset(cnn, mapped):
    for X in (Pairs(IMAGES, Y), mapped(IMAGES)):
        assert split_points(cnn, X) == split_points(cnn, IMAGES[:8])
        assert describe(cnn, X).equals(describe(cnn, IMAGES[:8]))


def test_a_bad_row_is_named_and_the_estimator_kept(cnn, mapped):
    images = IMAGES.copy()
    images[431, 0, 3, 3] = np.nan
    estimator = classifier(cnn, trainer=ClosedFormTrainer(sweeps=1), batch_size=100)
    with pytest.raises(ValueError, match=r"In rows 400 to 499 of X: Input X contains NaN"):
        estimator.fit(IMAGES, Y).predict(mapped(images))
    with pytest.raises(ValueError, match=r"In rows \d+ to \d+ of X: Input X contains NaN"):
        estimator.fit(mapped(images), Y)
    with pytest.raises(ValueError, match=r"600 samples and y 599"):
        estimator.fit(mapped(images), Y[:-1])


def test_memory_is_bounded(tmp_path):
    """256 MB of rows, within 150 MB of the process's own memory above what it starts with."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier

torch.set_num_threads(1)
path, n = sys.argv[1], 1 << 20
rows = np.lib.format.open_memmap(path, "w+", np.float32, (n, 64))
for start in range(0, n, 1 << 14):
    rows[start : start + (1 << 14)] = np.random.default_rng(start).normal(size=(1 << 14, 64))
del rows
rows = np.load(path, mmap_mode="r")
labels = np.arange(n) % 4
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
trainer = ClosedFormTrainer(sweeps=0)
fit = lambda X, y: FeatureBackpropClassifier(net, trainer=trainer, batch_size=4096).fit(X, y)
fit(np.array(rows[:100]), labels[:100])  # imports, and buffers of the libraries
status = Path("/proc/self/status").read_text()
own = next(int(l.split()[1]) for l in status.splitlines() if l.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, ((own << 10) + int(sys.argv[2]),) * 2)
fit(rows if sys.argv[3] == "map" else np.array(rows), labels).predict(rows)
print("done")
"""

    def run(limit, kind):
        command = [sys.executable, "-c", script, str(tmp_path / "rows.npy"), str(limit), kind]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can limit the memory of a process, mapped files left out")
    done = run(150 << 20, "map")
    assert done.stdout.strip() == "done", done.stderr
    assert "memory" in run(150 << 20, "array").stderr.lower()
