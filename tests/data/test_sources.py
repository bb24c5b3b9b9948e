"""Samples that lie in files and datasets: read as numpy and torch would, by number."""

import pickle

import numpy as np
import pytest
import torch
from skorch.dataset import Dataset as SkorchDataset
from skorch.helper import SliceDataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from featprop_sklearn.data import find_source, is_large, sources

ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)
LABELS = np.arange(20) % 4


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    return np.load(tmp_path / "rows.npy", mmap_mode="r")


class Pairs(Dataset):
    def __init__(self, sample=lambda i: ROWS[i], label=lambda i: LABELS[i]):
        self.sample, self.label = sample, label

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return self.sample(index), self.label(index)


class Samples(Pairs):
    def __getitem__(self, index):
        return self.sample(index)


class Several(Pairs):
    """Reads several items at once, as torch's loaders ask for."""

    def __getitems__(self, indices):
        assert all(type(index) is int for index in indices)
        return [self[index] for index in indices]


NUMBERS = [range(20), range(3, 9), range(0, 20, 7), np.array([5, 2, 2, 19])]


@pytest.mark.parametrize("rows", NUMBERS, ids=str)
@pytest.mark.parametrize(
    "dataset",
    [
        Pairs(),
        Samples(),
        Several(),
        Pairs(lambda i: torch.from_numpy(ROWS[i])),
        TensorDataset(torch.from_numpy(ROWS), torch.from_numpy(LABELS)),
        TensorDataset(torch.from_numpy(ROWS)),
        SkorchDataset(ROWS, LABELS),
        SliceDataset(SkorchDataset(ROWS, LABELS), idx=0),
        Subset(Pairs(), range(20)),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_datasets_are_read_by_number(dataset, rows):
    np.testing.assert_array_equal(find_source(dataset).read(rows), ROWS[np.asarray(rows)])


@pytest.mark.parametrize("rows", NUMBERS, ids=str)
def test_files_are_read_by_number(mapped, rows):
    read = find_source(mapped).read(rows)
    assert not isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, ROWS[np.asarray(rows)])
    both = find_source({"a": mapped, "b": LABELS}).read(rows)
    np.testing.assert_array_equal(both["a"], ROWS[np.asarray(rows)])
    np.testing.assert_array_equal(both["b"], LABELS[np.asarray(rows)])


def test_dicts_are_stacked_by_name():
    dataset = Samples(lambda i: {"image": ROWS[i], "mask": bool(i % 2), "age": torch.tensor(i)})
    read = find_source(dataset).read(range(4))
    np.testing.assert_array_equal(read["image"], ROWS[:4])
    assert read["mask"].tolist() == [False, True, False, True]
    assert read["age"].tolist() == [0, 1, 2, 3]
    assert read["age"].dtype == np.int64


@pytest.mark.parametrize("X", [ROWS, ROWS.tolist(), torch.from_numpy(ROWS), {"a": ROWS}, None])
def test_what_is_in_memory_is_left_to_others(X):
    assert find_source(X) is None


@pytest.mark.parametrize("label", [lambda i: LABELS[i], lambda i: "abcd"[LABELS[i]]])
def test_labels_are_collected_in_parts(label, monkeypatch):
    monkeypatch.setattr(sources, "LABELS_AT_A_TIME", 7)
    found = find_source(Pairs(label=label)).labels()
    assert found.tolist() == [label(i) for i in range(20)]


def test_samples_alone_have_no_labels():
    with pytest.raises(ValueError, match=r"y is None, and the items of X \(Samples\) are samples"):
        find_source(Samples()).labels()


def test_large_is_what_exceeds_the_limit(mapped, monkeypatch):
    for limit, large in [(60 * 4, False), (60 * 4 - 1, True)]:
        monkeypatch.setattr(sources, "READ_AT_ONCE", limit)
        assert is_large(find_source(mapped)) is large
        assert is_large(find_source(Pairs())) is large


class Endless(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        (DataLoader(Pairs()), TypeError, r"X is a torch DataLoader.*Pass its dataset, X\.dataset"),
        (Endless(), TypeError, r"IterableDataset \(Endless\).*partial_fit"),
        (type("NoLength", (Dataset,), {})(), TypeError, "NoLength without a length"),
        (TensorDataset(torch.ones(0, 3)), ValueError, "TensorDataset without samples"),
        (TensorDataset(*[torch.ones(2, 3)] * 3), TypeError, "hold 3 values each.*into a dict"),
    ],
)
def test_what_cannot_be_read_by_number_is_refused(X, error, text):
    with pytest.raises(error, match=text):
        find_source(X)


def test_items_of_several_shapes_are_refused():
    dataset = Pairs(lambda i: ROWS[0, : 1 + i // 10])
    with pytest.raises(ValueError, match=r"Items 8 to 11 of X \(Pairs\) do not stack.*one shape"):
        find_source(dataset).read(range(8, 12))


@pytest.mark.parametrize(
    "view", [slice(None), slice(4, 15), slice(None, None, 3)], ids=["all", "part", "strided"]
)
def test_a_pickle_names_the_file(mapped, view):
    source = find_source(mapped[view])
    pickled = pickle.dumps(source)
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.read(range(4)), ROWS[view][:4])
    if view.step is None:
        assert isinstance(again.arrays, np.memmap)
        assert ROWS[view].tobytes() not in pickled
    both = pickle.loads(pickle.dumps(find_source({"a": mapped[view], "b": LABELS})))
    np.testing.assert_array_equal(both.read(range(4))["a"], ROWS[view][:4])
