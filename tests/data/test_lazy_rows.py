"""Rows that are read when asked for behave as the array, or tensor, that they stand for."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featprop_sklearn.data import (
    LazyRows,
    RowStore,
    TensorRows,
    check_rows,
    join_rows,
    shape_samples,
    take_rows,
    to_inputs,
)

ROWS = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32)


class Counting:
    """A source that counts what it is asked for."""

    def __init__(self, rows=ROWS):
        self.rows, self.n_read = rows, 0

    def __len__(self):
        return len(self.rows)

    def read(self, rows):
        self.n_read += len(rows)
        return np.array(self.rows[np.asarray(rows)])


def halves(values):
    return values.reshape(len(values), 2, 3)


def tensors(dtype=torch.float64, device="cpu"):
    return to_inputs(LazyRows(Counting()), dtype, device)


slices = st.builds(
    slice,
    st.none() | st.integers(-25, 25),
    st.none() | st.integers(-25, 25),
    st.none() | st.integers(1, 4),
)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(slices, st.lists(st.integers(0, 22), min_size=1), st.booleans())
def test_choosing_rows_is_numpys(first, second, lazily):
    lazy = LazyRows(Counting()).then(halves)
    assert lazy.shape == (23, 2, 3)
    wanted = halves(ROWS)[first]
    lazy = lazy[first]
    assert lazy.shape == wanted.shape
    if len(wanted):
        numbers = np.array(second) % len(wanted)
        lazy, wanted = lazy[numbers], wanted[numbers]
        mask = wanted[:, 0, 0] > 0
        np.testing.assert_array_equal(lazy.read(), wanted)
        np.testing.assert_array_equal(np.asarray(lazy, dtype=np.float64), wanted)
        if mask.any():
            np.testing.assert_array_equal(lazy[mask].read(), wanted[mask])


def test_nothing_is_read_before_it_is_asked_for():
    source = Counting()
    lazy = LazyRows(source)[3:20]
    x = take_rows(to_inputs(lazy, torch.float32), slice(2, None))
    assert source.n_read == 1  # the example
    assert x[:4].shape == (4, 6)
    assert source.n_read == 5


@pytest.mark.parametrize(
    "rows", [slice(None), slice(2, 5), torch.tensor([7, 0, 7])], ids=["all", "some", "numbers"]
)
@pytest.mark.parametrize("place", ["cpu", "accelerator"])
def test_tensors_of_rows(rows, place, request):
    device = place if place == "cpu" else request.getfixturevalue(place)
    rows = rows.to(device) if isinstance(rows, torch.Tensor) else rows
    whole, lazy = torch.from_numpy(ROWS).double().to(device), tensors(device=device)
    assert lazy.shape == (23, 6)
    assert lazy.device == torch.device(device)
    assert lazy[rows].dtype == torch.float64
    assert torch.equal(lazy[rows], whole[rows])
    assert torch.equal(take_rows(lazy, rows)[:], whole[rows])
    joined = join_rows(take_rows(lazy, rows), take_rows(lazy, slice(1, 2)))
    assert torch.equal(joined[:], torch.cat([whole[rows], whole[1:2]]))
    assert torch.equal(join_rows(whole[rows], whole[1:2]), joined[:])


def test_rows_are_checked_as_they_are_read():
    rows = ROWS.copy()
    rows[17, 2] = np.nan
    lazy = LazyRows(Counting(rows), check_rows)
    lazy[:17].read()
    with pytest.raises(ValueError, match=r"In rows 12 to 19 of X: Input X contains NaN"):
        lazy[12:20].read()


def test_what_was_read_keeps_its_dtype():
    """Each batch alone might choose another one."""
    lazy = LazyRows(Counting(), lambda v: v.astype(np.float32 if len(v) == 1 else np.float64))
    assert lazy.dtype == lazy[:5].read().dtype == np.float32


def test_rows_survive_pickling():
    lazy = LazyRows(Counting(), check_rows, partial(shape_samples, input_shape=(2, 3)))[4:9]
    again = pickle.loads(pickle.dumps(to_inputs(lazy, torch.float32)))
    assert torch.equal(again[:], torch.from_numpy(halves(ROWS)[4:9]))


def test_batches_are_joined_in_memory_or_in_a_file():
    whole = torch.from_numpy(ROWS)
    for like in (whole, tensors()):
        store = RowStore(like)
        for start in range(0, 23, 5):
            store.append(whole[start : start + 5])
        result = store.result()
        assert isinstance(result, TensorRows) == (like is not whole)
        assert result.shape == whole.shape
        assert result.dtype == torch.float32
        assert torch.equal(result[:], whole)
        assert torch.equal(result[torch.tensor([3, 1])], whole[[3, 1]])


def test_the_file_goes_with_its_last_user(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = RowStore(tensors())
    store.append(torch.from_numpy(ROWS))
    result = store.result()
    view = result.rows.source.arrays[3:5]
    del store, result
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"featprop_.*\.rows", file.name)
    np.testing.assert_array_equal(view, ROWS[3:5])
    del view
    assert not list(tmp_path.iterdir())
