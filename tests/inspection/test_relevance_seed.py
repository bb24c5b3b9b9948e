"""Where relevance starts: worked example, guards, and which classes are meant."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featprop_sklearn.inspection.relevance.classes import (
    hostile_classes,
    one_each,
    target_classes,
)
from featprop_sklearn.inspection.relevance.seed import class_map, sections, seed_relevance

LOGITS = torch.tensor([[3.0, -1.0, 2.0, 0.5], [-2.0, 1.0, 0.0, 4.0]], dtype=torch.float64)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def masked(*rows):
    return torch.tensor([[column in row for column in range(4)] for row in rows])


def seed(features, weights, target, hostile):
    """Seed relevance for gradients that are constant in each channel."""

    def gradient(classes):
        return tensor(weights)[classes][..., None].expand_as(features)

    return seed_relevance(features, gradient, torch.tensor(target), torch.tensor(hostile))


def test_seed_of_the_specification():
    features = tensor([[[1, 2, 0], [0, 1, 3]]])
    found = seed(features, [[1, 0], [0.5, 1]], [0], [[False, True]])
    expected = tensor([[[0.444444, 0.555556, -0.5]] * 2])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_sections_of_the_specification():
    difference = tensor([[[1 / 3, 2 / 3, 0], [0, -1 / 3, -1]]])
    expected = tensor([[[0.888889, 1.111111, -1]] * 2]) / 2
    torch.testing.assert_close(sections(difference), expected, rtol=0, atol=1e-6)


def test_seed_against_two_classes():
    """D = 2 Û^t − Û^1 − Û^2 = diag(1.5, 2, −2)."""
    features = torch.eye(3, dtype=torch.float64)[None]
    weights = [[1, 1, 0], [0.5, 0, 1], [0, 0, 1]]
    found = seed(features, weights, [0], [[False, True, True]])
    expected = tensor([[[2 / 7, 8 / 21, -1 / 3]] * 3])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_without_hostile_classes_the_seed_is_the_map_of_the_target():
    features = tensor([[[1, 2, 0], [0, 1, 3]]])
    found = seed(features, [[1, -0.5], [0.5, 1]], [0], [[False, False]])
    torch.testing.assert_close(found, tensor([[[0.5, 1, 0], [0, -0.25, -0.75]]]), rtol=0, atol=1e-8)


def test_samples_may_have_different_numbers_of_hostile_classes():
    features = torch.rand(3, 2, 4, dtype=torch.float64)
    weights = torch.randn(4, 2, dtype=torch.float64).tolist()
    hostile = [[False, True, True, True], [True, False, False, False], [False] * 4]
    together = seed(features, weights, [0, 2, 3], hostile)
    for row, (target, rivals) in enumerate(zip([0, 2, 3], hostile, strict=True)):
        alone = seed(features[row : row + 1], weights, [target], [rivals])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_map_is_divided_by_its_largest_size_where_nothing_speaks_for_the_class():
    features = tensor([[[1, 2], [4, 0]]])
    found = class_map(features, tensor([[[-1, -1], [-2, -2]]]))
    torch.testing.assert_close(found, tensor([[[-0.125, -0.25], [-1, 0]]]), rtol=0, atol=1e-8)


def test_gradients_are_averaged_over_positions():
    features = tensor([[[1, 2], [4, 0]]])
    uneven = class_map(features, tensor([[[0, 2], [3, 5]]]))
    torch.testing.assert_close(uneven, class_map(features, tensor([[[1, 1], [4, 4]]])))


@pytest.mark.parametrize(
    ("values", "total"), [([[2.0, 1.0]], 2), ([[-2.0, 0.0]], -1), ([[0.0]], 0)]
)
def test_an_empty_section_contributes_nothing(values, total):
    assert float(sections(tensor([values])).sum()) == pytest.approx(total)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 10_000))
def test_sections_hold_two_and_minus_one(number):
    g = torch.Generator().manual_seed(number)
    found = sections(torch.randn(3, 4, 5, 6, generator=g, dtype=torch.float64))
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(found.clamp_min(0).sum((1, 2, 3)), 2 * ones)
    torch.testing.assert_close(found.clamp_max(0).sum((1, 2, 3)), -ones)
    assert torch.equal(found, found[:, :1].expand_as(found))


# classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [0, 3]),
        (2, [2, 2]),
        (np.int32(1), [1, 1]),
        ([1, 0], [1, 0]),
        (torch.tensor([3, 2]), [3, 2]),
        (np.array([0, 0], dtype=np.uint8), [0, 0]),
    ],
)
def test_target(target, expected):
    assert target_classes(target, LOGITS).tolist() == expected


@pytest.mark.parametrize("target", [1.0, True, "cat", [0, 1, 2], [[0], [1]], [0.5, 1.0]])
def test_what_is_no_target(target):
    text = r"target must be an integer, or one for each of the 2 samples; got "
    with pytest.raises(ValueError, match=text):
        target_classes(target, LOGITS)


@pytest.mark.parametrize("target", [4, -1, [0, 7]])
def test_target_out_of_range(target):
    text = r"target holds -?\d, which is no class of this network: it has 4 outputs, 0 to 3"
    with pytest.raises(ValueError, match=text):
        target_classes(target, LOGITS)


@pytest.mark.parametrize(
    ("hostile", "expected"),
    [
        (None, masked([], [])),
        ([], masked([], [])),
        ([1], masked([1], [1])),
        ([2, 3, 2], masked([2, 3], [2, 3])),
        ([[1], [2]], masked([1], [2])),
        ([[1], [2, 3]], masked([1], [2, 3])),
        ([[], (3, 1)], masked([], [1, 3])),
        ([np.array([2, 2, 1]), torch.tensor([3])], masked([1, 2], [3])),
        (torch.tensor([[1, 2], [2, 2]]), masked([1, 2], [2])),
        (masked([1], [2, 3]).numpy(), masked([1], [2, 3])),
        ("runner_up", masked([2], [3])),
        ("present", masked([2, 3], [1, 2, 3])),
    ],
)
def test_hostile(hostile, expected):
    assert torch.equal(hostile_classes(hostile, torch.tensor([0, 0]), LOGITS), expected)


def test_a_single_output_has_no_rival():
    for hostile in ("runner_up", "present"):
        assert not hostile_classes(hostile, torch.tensor([0, 0]), LOGITS[:, :1]).any()


@pytest.mark.parametrize(
    "hostile",
    [
        *(1, 0.5, [0.5], [True, False], [[1], [2], [3]], np.zeros((1, 2, 2), int)),
        *([[1], [2, 3], [1]], [[1], [2.5, 3]], [[1], None], [[1], [[2], [3]]], [1, [2, 3]]),
    ],
)
def test_what_is_no_list_of_hostile_classes(hostile):
    text = r"hostile must be a list of classes, .* a boolean array of shape \(2, 4\); got "
    with pytest.raises(ValueError, match=text):
        hostile_classes(hostile, torch.tensor([0, 0]), LOGITS)


def test_unknown_word_for_hostile_classes():
    text = r"hostile must be one of 'runner_up', 'present', a list of classes, or None; got 'all'"
    with pytest.raises(ValueError, match=text):
        hostile_classes("all", torch.tensor([0, 0]), LOGITS)


def test_hostile_class_out_of_range():
    with pytest.raises(ValueError, match=r"hostile holds 4, which is no class of this network"):
        hostile_classes([1, 4], torch.tensor([0, 0]), LOGITS)


def test_hostile_class_out_of_range_in_lists_of_different_lengths():
    with pytest.raises(ValueError, match=r"hostile holds -1, which is no class of this network"):
        hostile_classes([[1, 2], [-1]], torch.tensor([0, 0]), LOGITS)


@pytest.mark.parametrize("hostile", [[1, 2], np.array([1, 2]), torch.tensor([1, 2])])
def test_a_flat_list_may_mean_one_a_sample(hostile):
    target = torch.tensor([0, 0])
    text = r"hostile=.* may be one class for each of the 2 samples, as .* Pass a list for each"
    with pytest.raises(ValueError, match=text):
        hostile_classes(hostile, target, LOGITS, each=True)
    assert torch.equal(hostile_classes(hostile, target, LOGITS), masked([1, 2], [1, 2]))
    column = np.asarray(hostile)[:, None]
    assert torch.equal(hostile_classes(column, target, LOGITS, each=True), masked([1], [2]))
    longer = hostile_classes([1, 2, 3], target, LOGITS, each=True)
    assert torch.equal(longer, masked([1, 2, 3], [1, 2, 3]))
    one = hostile_classes([2], target[:1], LOGITS[:1], each=True)
    assert torch.equal(one, masked([2]))


@pytest.mark.parametrize(
    ("target", "expected"),
    [(None, False), (2, False), (np.int64(2), False), ([1, 0], True), (torch.tensor([1]), True)],
)
def test_targets_one_a_sample(target, expected):
    assert one_each(target) is expected


@pytest.mark.parametrize("hostile", [[1, 0], [[1], [3]], [[1, 2], [3]]])
def test_the_target_is_not_hostile_to_itself(hostile):
    text = r"hostile=.* holds the target of a sample\. Leave it out"
    with pytest.raises(ValueError, match=text):
        hostile_classes(hostile, torch.tensor([0, 3]), LOGITS)
