"""A dict of arrays as one packed array: exact, checked, and the same layout at predict."""

from collections import UserDict

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import dok_array
from sklearn.datasets import load_digits, load_iris
from skorch.helper import SliceDict

from featprop_sklearn.data import Layout, Part, check_whole, is_named, pack

DIGITS = load_digits()
HALVES = {"upper": DIGITS.images[:, :4], "lower": DIGITS.images[:, 4:]}


def unpacked(packed, layout):
    return {
        part.name: packed[:, place].reshape(len(packed), *part.shape)
        for part, place in layout.pieces()
    }


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.data(), st.integers(1, 4), st.lists(SHAPES, min_size=1, max_size=4))
def test_what_is_packed_comes_back(data, rows, shapes):
    kinds = st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_])
    X = {}
    for number, shape in enumerate(shapes):
        dtype = np.dtype(data.draw(kinds))
        values = {"f": st.floats(-1e3, 1e3, width=16), "b": st.booleans()}.get(
            dtype.kind, st.integers(0 if dtype.kind == "u" else -(2**24), 255)
        )
        X[f"x{number}"] = data.draw(hnp.arrays(dtype, (rows, *shape), elements=values))
    packed, layout = pack(X, None, "Someone")
    assert packed.dtype == np.float32
    assert packed.shape == (rows, sum(part.size for part in layout.parts))
    assert layout.names == list(X)
    for name, values in unpacked(packed, layout).items():
        np.testing.assert_array_equal(values, X[name].astype(np.float64))
    again, same = pack(dict(reversed(X.items())), layout, "Someone")  # the order is the layout's
    np.testing.assert_array_equal(again, packed)
    assert same is layout


def test_double_precision_stays():
    packed, layout = pack(HALVES, None, "Someone")
    assert packed.dtype == np.float64
    np.testing.assert_array_equal(unpacked(packed, layout)["lower"], DIGITS.images[:, 4:])


def test_kinds_and_shapes():
    _, layout = pack(
        {
            "images": torch.from_numpy(DIGITS.images).half(),
            "codes": DIGITS.target,
            "mask": DIGITS.data > 7,
            "list": DIGITS.data.tolist(),
        },
        None,
        "Someone",
    )
    assert layout == Layout(
        (
            Part("images", (8, 8), "float"),
            Part("codes", (), "int"),
            Part("mask", (64,), "bool"),
            Part("list", (64,), "float"),
        )
    )


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_columns_of_frames_are_remembered(frame):
    rows = load_iris().data
    table = frame({"a": rows[:, 0], "b": rows[:, 1]})
    packed, layout = pack({"x": table}, None, "Someone")
    np.testing.assert_array_equal(packed, rows[:, :2])
    pack({"x": rows[:, :2]}, layout, "Someone")
    with pytest.raises(
        ValueError, match=r"X\['x'\] has the columns \['b', 'a'\], but Someone was fitted on \['a'"
    ):
        pack({"x": table[["b", "a"]]}, layout, "Someone")


A = np.ones((4, 2))


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        ({}, ValueError, r"X is an empty dict\. Its keys must be names of the network's arguments"),
        ({1: A}, TypeError, r"The keys of X must be names of .* got 1, a int\."),
        (
            {"a": A, "b": A[:3]},
            ValueError,
            r"must have the same number of rows: X\['a'\] has 4, X\['b'\] has 3\.",
        ),
        ({"a": A, "b": None}, ValueError, r"X\['b'\] must be an array with one row .* got None\."),
        ({"a": A, "b": True}, ValueError, r"X\['b'\] must be an array .* Leave out what is no in"),
        ({"a": [["u"], ["v"]]}, ValueError, r"X\['a'\] is no array that a network can read: "),
        ({"a": A * np.nan}, ValueError, r"X\['a'\] is no array .* Input contains NaN"),
        ({"a": A + 1j}, ValueError, r"X\['a'\] is no array .* Complex data not supported"),
        ({"a": A[:0]}, ValueError, r"X\['a'\] is no array .* 0 sample\(s\)"),
        ({"a": A[:, :0]}, ValueError, r"X\['a'\] is no array .* 0 feature\(s\)"),
        ({"a": np.ones((4, 2, 0))}, ValueError, r"X\['a'\] holds samples of shape \(2, 0\), with"),
        (
            {"a": torch.utils.data.TensorDataset(torch.ones(2, 2))},
            TypeError,
            r"X\['a'\] is a torch Dataset",
        ),
    ],
)
def test_wrong_dicts(X, error, text):
    with pytest.raises(error, match=text):
        pack(X, None, "Someone")


@pytest.mark.parametrize(
    ("X", "text"),
    [
        (
            {"a": A},
            r"X lacks 'b': Someone was fitted on a dict with the keys \['a', 'b'\]\. Pass a",
        ),
        ({"a": A, "b": A, "c": A, "d": A}, r"X has 'c' and 'd' as well: Someone was fitted on "),
        ({"a": A, "B": A}, r"X lacks 'b' and has 'B' as well: Someone was fitted on"),
        (
            {"a": A, "b": A[:, :1]},
            r"X\['b'\] holds samples of shape \(1,\), but Someone was fitted on .* \(2,\)",
        ),
        ({"a": A, "b": A / 2}, r"X\['b'\] holds 0\.5, but the network reads whole numbers there\."),
        ({"a": A, "b": A * 2**24 + 1}, r"X\['b'\] holds 16777217\. Integers .* 16777216 only"),
    ],
)
def test_other_dicts_than_fitted(X, text):
    _, layout = pack({"a": A, "b": A.astype(int)}, None, "Someone")
    with pytest.raises(ValueError, match=text):
        pack(X, layout, "Someone")


def test_integers_up_to_the_largest():
    values = np.array([[2**24], [-(2**24)]])
    packed, layout = pack({"a": values}, None, "Someone")
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed, values)
    layout.check_values(packed)
    for sign in (1, -1):  # float32 would round it to one that is allowed
        packed, layout = pack({"a": sign * (values + sign)}, None, "Someone")
        with pytest.raises(ValueError, match=r"X\['a'\] holds -?16777217\. Integers reach "):
            layout.check_values(packed)


def test_what_is_a_dict_of_inputs():
    assert is_named(HALVES)
    assert is_named(SliceDict(**HALVES))
    assert is_named(UserDict(HALVES))  # as of Hugging Face's tokenizers
    assert not is_named(pd.DataFrame(DIGITS.data))
    assert not is_named(dok_array(DIGITS.data))


def test_booleans():
    check_whole(np.array([0.0, 1.0]), "X", boolean=True)
    with pytest.raises(ValueError, match=r"X holds 2\.0, but the network reads booleans there"):
        check_whole(np.array([0.0, 2.0]), "X", boolean=True)
