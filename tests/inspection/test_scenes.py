"""Scenes of two digits: places, boxes and strokes belong together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from featprop_sklearn.inspection import box_masks, make_digit_scenes


@given(st.integers(0, 10_000))
def test_digits_lie_in_their_boxes_apart_from_each_other(seed):
    scenes = make_digit_scenes(12, random_state=seed)
    boxes = box_masks(scenes.boxes, scenes.images.shape[2:])
    assert (boxes.sum(axis=(2, 3)) == 12 * 12).all()
    assert not boxes.all(axis=1).any()
    assert not (scenes.masks & ~boxes).any()
    assert scenes.masks.any(axis=(2, 3)).all()
    assert not scenes.images[:, 0][~boxes.any(axis=1)].any()
    assert (scenes.boxes[..., :2] == scenes.positions).all()
    assert (scenes.labels[:, 0] != scenes.labels[:, 1]).all()
    assert (scenes.labels == np.stack([scenes.target, scenes.hostile], axis=1)).all()


def test_the_digit_in_the_box_is_the_one_that_is_said():
    scenes = make_digit_scenes(30, digit_size=8, size=20, random_state=0)
    known = load_digits()
    for image, places, labels in zip(scenes.images, scenes.positions, scenes.labels, strict=True):
        for (row, column), label in zip(places, labels, strict=True):
            digit = image[0, row : row + 8, column : column + 8] * 16
            same = (np.abs(known.images - digit) < 1e-4).all(axis=(1, 2))
            assert label in known.target[same]


def test_shapes_and_ranges():
    scenes = make_digit_scenes(7, size=40, digit_size=15, random_state=0)
    assert scenes.images.shape == (7, 1, 40, 40)
    assert scenes.images.dtype == np.float32
    assert scenes.images.min() == 0
    assert 0.9 < scenes.images.max() <= 1
    assert scenes.masks.shape == (7, 2, 40, 40)
    assert scenes.masks.dtype == bool


def test_scenes_can_be_repeated():
    first, again = (make_digit_scenes(5, random_state=3) for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first.images != make_digit_scenes(5, random_state=4).images).any()


def test_training_digits_are_none_of_the_test_digits():
    drawn = {
        subset: make_digit_scenes(300, subset=subset, digit_size=8, size=16, random_state=0)
        for subset in ("train", "test")
    }
    known = load_digits().images[:1000].reshape(1000, -1)

    def all_known(scenes):
        corner = scenes.positions == 0
        first = scenes.images[corner.all(axis=2)[:, 0], 0, :8, :8] * 16
        return [bool((np.abs(known - one.ravel()) < 1e-4).all(axis=1).any()) for one in first]

    assert all(all_known(drawn["train"]))
    assert not any(all_known(drawn["test"]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_samples": 0}, "n_samples must be an integer of at least 1; got 0"),
        ({"subset": "tset"}, "subset must be one of 'all', 'train', 'test'; got 'tset'"),
        ({"size": 20}, "size must be at least twice digit_size, .* size=20 and digit_size=12"),
    ],
)
def test_errors(options, text):
    with pytest.raises(ValueError, match=text):
        make_digit_scenes(**options)
