"""Fits and grid searches on a Dask cluster of two processes: the same bits as without it."""

import _thread
import pickle
import warnings
from collections import Counter

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import nn

from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier
from featprop_sklearn.data import sources
from featprop_sklearn.networks import affine_sites, build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import Labelled, layer_sums

distributed = pytest.importorskip("distributed", reason="the extra 'distributed' is not installed")


class Finished(distributed.SchedulerPlugin):
    """Counts the tasks of joblib that each worker has finished; presses Ctrl-C after some."""

    def __init__(self):
        self.by_worker = Counter()
        self.interrupt_after = None

    @property
    def count(self):
        return self.by_worker.total()

    def transition(self, key, start, finish, *args, worker=None, **kwargs):
        if (start, finish) == ("processing", "memory") and str(key).startswith("batch_of_"):
            self.by_worker[worker] += 1
            if self.count == self.interrupt_after:
                _thread.interrupt_main()


@pytest.fixture(scope="module")
def cluster():
    """Two processes of one thread, for Dask sets OMP_NUM_THREADS=1 in them."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert set(client.run(torch.get_num_threads).values()) == {1}
        yield cluster


@pytest.fixture
def finished(cluster):
    plugin = Finished()
    cluster.scheduler.add_plugin(plugin, name="finished")
    yield plugin
    cluster.scheduler.remove_plugin("finished")


@pytest.fixture
def small_tasks(monkeypatch):
    monkeypatch.setattr(layer_sums, "TASK_ROWS", 32)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32)[:300], y[:300]


@pytest.fixture(scope="module")
def network(digits):
    X, y = map(torch.tensor, digits)
    torch.manual_seed(0)
    layers = nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
    net = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture
def classifier(network):
    trainer = ClosedFormTrainer(sweeps=1)
    options = {"margin": 2.0, "batch_size": 20, "validation_fraction": 0, "random_state": 0}
    return FeatureBackpropClassifier(network, split="3", trainer=trainer, **options)


def weights(estimator):
    return list(estimator.module_.state_dict().values())


def assert_same_weights(one, other):
    assert all(map(torch.equal, weights(one), weights(other)))


def tensors(sums):
    return list(map(torch.as_tensor, vars(sums).values()))


# A single fit -----------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tasks")
def test_a_fit_on_the_cluster_has_the_weights_of_a_serial_one(classifier, digits, finished):
    serial = clone(classifier).fit(*digits)
    assert finished.count == 0
    with joblib.parallel_config(backend="dask"):
        on_cluster = clone(classifier).fit(*digits)
    assert_same_weights(serial, on_cluster)
    assert [entry["refitted"] for entry in on_cluster.history_[1:]] == [["0", "2"]]
    tasks = 300 // 32
    assert finished.count == 2 * tasks
    assert len(finished.by_worker) == 2  # both workers took part


@pytest.mark.usefixtures("small_tasks", "cluster")
def test_gram_matrices_from_the_cluster_are_those_of_all_rows(network, digits):
    X, y = digits
    rng = np.random.default_rng(0)
    sample_weight = rng.uniform(0.5, 2.0, len(X))
    data = Labelled(torch.tensor(X), torch.tensor(y), torch.tensor(sample_weight))
    chain = build_chain(network, data.inputs[:4])
    targets = OutputTargets("multiclass", margin=2.0)
    for site in affine_sites(chain, data.inputs[:4]):
        serial = layer_sums.layer_sums(chain, site, data, targets, 20)
        with joblib.parallel_config(backend="dask"):
            summed = layer_sums.layer_sums(chain, site, data, targets, 20)
        assert all(map(torch.equal, tensors(serial), tensors(summed)))
        with torch.no_grad():
            inputs = chain[: site.stage](data.inputs).double().numpy()
        rows = np.column_stack([inputs, np.ones(len(X))])
        expected = (rows.T * sample_weight) @ rows
        np.testing.assert_allclose(summed.gram[0], expected, rtol=1e-10, atol=1e-10)
        assert summed.n_rows == pytest.approx(sample_weight.sum(), rel=1e-12)


@pytest.mark.usefixtures("small_tasks")
def test_workers_read_their_rows_of_a_memory_map(
    classifier, digits, finished, monkeypatch, tmp_path
):
    monkeypatch.setattr(sources, "READ_AT_ONCE", 0)
    X, y = digits
    np.save(tmp_path / "rows.npy", X)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    serial = clone(classifier).fit(X, y)
    with joblib.parallel_config(backend="dask"):
        on_cluster = clone(classifier).fit(rows, y)
    assert len(finished.by_worker) == 2
    assert_same_weights(serial, on_cluster)


# joblib says that it cancels what nobody waits for, where the sums are added as Ctrl-C comes
@pytest.mark.filterwarnings("ignore:.*tasks which were still being processed:UserWarning")
@pytest.mark.usefixtures("small_tasks")
def test_ctrl_c_leaves_a_usable_estimator_and_cluster(classifier, digits, finished):
    untrained = clone(classifier).set_params(trainer__sweeps=0).fit(*digits)
    finished.interrupt_after = 12  # of 9 tasks a layer: in the second
    with joblib.parallel_config(backend="dask"):
        for _ in range(3):  # Python drops an interrupt that comes while it collects garbage
            finished.by_worker.clear()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                stopped = clone(classifier).fit(*digits)
            told = [str(w.message) for w in caught if w.category is ConvergenceWarning]
            if told:
                break
        assert any("interrupted; the estimator is usable" in text for text in told)
        again = clone(classifier).fit(*digits)
    assert 12 <= finished.count < 18 + 18
    assert_same_weights(stopped, untrained)
    assert_same_weights(again, clone(classifier).fit(*digits))


# What runs in parallel around it ----------------------------------------------------------


@pytest.mark.usefixtures("small_tasks")
def test_a_grid_search_on_the_cluster_finds_what_a_serial_one_does(classifier, digits, finished):
    grid = {"trainer__ridge": [1e-4, 1e-1], "split": ["1", "3"]}
    search = GridSearchCV(classifier, grid, cv=2)
    serial = clone(search).fit(*digits)
    with joblib.parallel_config(backend="dask"):
        on_cluster = clone(search).fit(*digits)
    assert len(finished.by_worker) == 2
    scores = [found.cv_results_["mean_test_score"] for found in (serial, on_cluster)]
    np.testing.assert_array_equal(*scores)
    assert len(set(scores[0])) > 1
    assert_same_weights(serial.best_estimator_, on_cluster.best_estimator_)


def test_the_parts_between_several_splits_are_trained_on_the_cluster(classifier, digits, finished):
    several = classifier.set_params(split=["0", "2"], trainer__ridge=0.1)
    serial = clone(several).fit(*digits)
    with joblib.parallel_config(backend="dask"):
        on_cluster = clone(several).fit(*digits)
    assert finished.count == 2
    assert_same_weights(serial, on_cluster)


# What travels, and where the boundaries lie ------------------------------------------------


@pytest.mark.usefixtures("small_tasks")
def test_the_network_leaves_once_a_layer(classifier, digits, finished, monkeypatch):
    sent = []

    def counted(self, protocol):
        sent.append(self)
        return object.__reduce_ex__(self, protocol)

    monkeypatch.setattr(layer_sums._Work, "__reduce_ex__", counted)
    with joblib.parallel_config(backend="dask"):
        classifier.fit(*digits)
    assert finished.count == 18
    assert len({id(work) for work in sent}) == 2
    assert len(sent) == 2


def test_rows_are_sent_without_those_around_them():
    data = Labelled(
        torch.ones(10_000, 8), torch.zeros(10_000, dtype=torch.int64), torch.ones(10_000)
    )
    part = data.take(slice(100, 200))
    sent = pickle.dumps(part)
    assert 100 * 8 * 4 < len(sent) < 2 * 100 * 12 * 4
    found = pickle.loads(sent)
    assert all(map(torch.equal, tensors(part), tensors(found)))


@settings(deadline=None, max_examples=50, derandomize=True)
@given(n_samples=st.integers(1, 10**9), positions=st.integers(1, 10**4), step=st.integers(1, 10**4))
def test_tasks_are_few_and_long(n_samples, positions, step):
    tasks = list(layer_sums._tasks(n_samples, positions, step))
    edges = [tasks[0].start, *(rows.stop for rows in tasks)]
    assert edges[0] == 0
    assert edges[-1] == n_samples
    assert [rows.start for rows in tasks] == edges[:-1]
    assert len(tasks) <= layer_sums.MOST_TASKS
    if len(tasks) > 1:
        assert min(np.diff(edges) + 1) * positions > layer_sums.TASK_ROWS
        assert len(tasks) <= -(-n_samples // step)
