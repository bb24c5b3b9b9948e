"""Which output is which class."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featprop_sklearn.output_targets import resolve_classes


def check_round_trip(class_map, y):
    y = np.asarray(y)
    index = class_map.encode(y)
    assert index.dtype == np.int64
    assert np.array_equal(class_map.decode(index), y)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float64])
def test_integer_labels_in_range_are_indices_and_absent_ones_keep_their_place(dtype):
    y = np.array([2, 4, 2], dtype=dtype)
    class_map = resolve_classes(y, 5)
    assert class_map.classes.tolist() == [0, 1, 2, 3, 4]
    assert class_map.classes.dtype == dtype
    assert class_map.encode(y).tolist() == [2, 4, 2]
    assert class_map.task == "multiclass"
    check_round_trip(class_map, y)


def test_a_small_integer_dtype_makes_room_for_many_outputs():
    class_map = resolve_classes(np.array([3], dtype=np.uint8), 1000)
    assert class_map.classes.dtype == np.int64
    assert class_map.classes[-1] == 999


def test_integers_in_an_object_array_are_indices():
    assert resolve_classes(np.array([0, 3], dtype=object), 5).classes.tolist() == [0, 1, 2, 3, 4]
    assert resolve_classes(np.array([1, 3], dtype=object), 2).classes.tolist() == [1, 3]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([1, 1], [0, 1]),
        ([-1, 1], [-1, 1]),
        ([2, 7], [2, 7]),
        (["yes", "no"], ["no", "yes"]),
        ([True, True], [False, True]),
        ([0.5, 1.5], [0.5, 1.5]),
    ],
)
def test_two_classes_with_one_output_or_two(width, y, expected):
    class_map = resolve_classes(y, width)
    assert class_map.classes.tolist() == expected
    assert class_map.classes.dtype == np.asarray(y).dtype
    assert class_map.task == ("binary" if width == 1 else "multiclass")
    check_round_trip(class_map, y)


def test_booleans_count_as_zero_and_one_among_more_outputs():
    class_map = resolve_classes([True, False], 3)
    assert class_map.classes.tolist() == [0, 1, 2]
    assert class_map.encode([True, False]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "expected"),
    [([3, 1, 2, 1], [1, 2, 3]), (["b", "c", "a"], ["a", "b", "c"]), ([-1, 0, 1], [-1, 0, 1])],
)
def test_other_labels_are_sorted(y, expected):
    class_map = resolve_classes(y, 3)
    assert class_map.classes.tolist() == expected
    check_round_trip(class_map, y)


def test_known_classes_come_before_inference_and_the_users_before_both():
    assert resolve_classes([1, 2], 3, known_classes=[1, 2, 3]).classes.tolist() == [1, 2, 3]
    both = resolve_classes([1, 2], 3, classes=[2, 1, 0], known_classes=[1, 2, 3])
    assert both.encode([1, 2, 0]).tolist() == [1, 0, 2]


def test_object_strings():
    y = np.array(["cat", "dog", "cat"], dtype=object)
    check_round_trip(resolve_classes(y, 2), y)
    check_round_trip(resolve_classes(y, 3, classes=["dog", "cow", "cat"]), y)


def test_a_column_of_labels_is_flat():
    assert resolve_classes([[0], [1]], 1).encode([[1], [0]]).tolist() == [1, 0]


def test_indicator_matrices():
    y = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    class_map = resolve_classes(y, 3)
    assert class_map.task == "multilabel"
    assert class_map.classes.tolist() == [0, 1, 2]
    check_round_trip(class_map, y)
    assert resolve_classes(y, 3, classes=["a", "b", "c"]).classes.tolist() == ["a", "b", "c"]


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    classes=st.lists(
        st.integers(-50, 50) | st.text("abc", min_size=1, max_size=3), min_size=2, unique=True
    ).filter(lambda labels: len({type(label) for label in labels}) == 1),
    seed=st.integers(0, 10**6),
)
def test_encode_undoes_decode_for_any_order_of_classes(classes, seed):
    index = np.random.default_rng(seed).integers(len(classes), size=30)
    y = np.asarray(classes)[index]
    class_map = resolve_classes(y, len(classes), classes=classes)
    assert np.array_equal(class_map.encode(y), index)
    check_round_trip(class_map, y)


@pytest.mark.parametrize(
    ("y", "width", "message"),
    [
        (["a", "b", "c"], 5, r"y holds 3 classes \(\['a', 'b', 'c'\]\) but the network has 5 outp"),
        ([0, 7], 5, r"y holds 2 classes \(\[0, 7\]\) .* pass classes=\[\.\.\.\] with 5 labels"),
        ([5], 2, r"y holds 1 class \(\[5\]\) but"),
        ([0, 1, 2], 1, r"has 1 output, which stands for two classes, too few for them: leave"),
        (range(4), 3, r"4 classes .* 3 outputs, too few .* matrix of 0 and 1, y\[:, None\] > thr"),
        (list(range(1, 9)), 3, r"\[1, 2, 3, 4, 5, 6, \.\.\.\]"),
        ([[0, 1], [1, 0]], 3, r"one column an output, 3 of them, got shape \(2, 2\)"),
        ([[0, 2], [1, 0]], 2, r"indicator matrix of 0 and 1, got the values \[0, 1, 2\]; .*flat y"),
        ([[[0]]], 1, r"y must be one label a sample.*got an array of shape \(1, 1, 1\)"),
    ],
)
def test_refuses_labels_that_do_not_fit(y, width, message):
    with pytest.raises(ValueError, match=message):
        resolve_classes(y, width)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": [0, 1]}, r"^classes must be 3 labels for a network with 3 outputs, got"),
        ({"classes": [0, 1, 1]}, r"^classes must be different labels, got \[0, 1, 1\]"),
        ({"known_classes": [0]}, r"the classes that the network was fitted with must be 3 labels"),
        ({"classes": ["a", "b", "c"]}, r"unknown label 0; the known labels are \['a', 'b', 'c'\]"),
    ],
)
def test_refuses_given_classes_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        resolve_classes([0, 1], 3, **given)


def test_encode_refuses_unknown_labels_and_matrices():
    class_map = resolve_classes(["a", "b"], 2)
    with pytest.raises(ValueError, match=r"unknown label 'z'; the known labels are \['a', 'b'\]"):
        class_map.encode(["a", "z"])
    with pytest.raises(ValueError, match=r"one label a sample, got an array of shape \(1, 2\)"):
        class_map.encode([[0, 1]])
