"""Scores of attribution maps: worked examples, other people's code, invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.metrics import jaccard_score

from featprop_sklearn.inspection import (
    average_drop,
    average_gain,
    average_increase,
    best_threshold,
    class_mean,
    curve_area,
    deletion_curve,
    insertion_curve,
    map_similarity,
    masked_scores,
    mass_inside,
    mean_iou,
    outside_inside_ratio,
    pointing_game,
)

MAP = np.array([[[3, 1, -1, -2], [2, 1, 0, -1], [0, 0.5, -1, -1], [0, 0, 0.5, -1]]])
MASK = np.zeros((1, 4, 4), dtype=bool)
MASK[0, :2, :2] = MASK[0, 2, 0] = True
seeds = given(st.integers(0, 10_000))
few = settings(deadline=None, max_examples=25, derandomize=True)


def random_case(seed, n=4, side=9):
    rng = np.random.default_rng(seed)
    masks = rng.random((n, side, side)) < 0.3
    masks[:, 0, 0], masks[:, -1, -1] = True, False
    return rng.normal(size=(n, side, side)), masks


# localisation -------------------------------------------------------------------------------


def test_localisation_of_the_specification():
    assert mean_iou(MAP, MASK) == pytest.approx([0.660714], abs=1e-6)
    assert outside_inside_ratio(MAP, MASK) == pytest.approx([0.064935], abs=1e-6)
    assert pointing_game(MAP, MASK).tolist() == [1]


def test_pointing_game_within_a_distance():
    maps = np.zeros((2, 8, 8))
    maps[:, 6, 6] = 1
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 2, 3] = True  # 5 pixels away; the second sample has none of the class
    assert pointing_game(maps, masks, tolerance=4.9).tolist() == [0, 0]
    assert pointing_game(maps, masks, tolerance=5).tolist() == [1, 0]


def test_a_constant_map_points_by_chance():
    assert pointing_game(np.zeros_like(MAP), MASK) == pytest.approx([5 / 16])


@seeds
@few
def test_a_perfect_map(seed):
    _, masks = random_case(seed)
    maps = masks.astype(float)
    assert (pointing_game(maps, masks) == 1).all()
    assert (mean_iou(maps, masks) == 1).all()
    assert (outside_inside_ratio(maps, masks) == 0).all()
    assert (mass_inside(maps, masks) == 1).all()
    assert (outside_inside_ratio(~masks, masks) == np.inf).all()
    assert (mean_iou(1.0 - maps, masks) == 0).all()


@seeds
@few
def test_scores_are_shares_and_ignore_the_scale(seed):
    maps, masks = random_case(seed)
    factors = np.random.default_rng(seed).uniform(0.1, 10, size=(len(maps), 1, 1))
    for score in (pointing_game, mean_iou, mass_inside, outside_inside_ratio):
        found = score(maps, masks)
        assert found.shape == (len(maps),)
        np.testing.assert_allclose(score(factors * maps, masks), found, rtol=1e-12)
        assert (found >= 0).all()
        assert score is outside_inside_ratio or (found <= 1).all()
    inside, outside = mass_inside(maps, masks), mass_inside(maps, ~masks)
    np.testing.assert_allclose(inside + outside, 1)


@seeds
@few
def test_mean_iou_is_that_of_scikit_learn(seed):
    maps, masks = random_case(seed)
    expected = [
        np.mean(jaccard_score(mask.ravel(), (one > 0.4 * one.max()).ravel(), average=None))
        for one, mask in zip(maps, masks, strict=True)
    ]
    np.testing.assert_allclose(mean_iou(maps, masks, threshold=0.4), expected)


@seeds
@few
def test_no_tried_threshold_is_better_than_the_best(seed):
    maps, masks = random_case(seed)
    best = mean_iou(maps, masks, threshold=best_threshold(maps, masks)).mean()
    assert all(best >= mean_iou(maps, masks, threshold=t).mean() for t in (0, 0.25, 0.5, 0.9))


def test_what_is_not_there_cannot_be_scored():
    nothing, everything = np.zeros_like(MAP), np.ones_like(MASK)
    assert np.isnan(mass_inside(nothing, MASK)).all()
    assert np.isnan(outside_inside_ratio(nothing, MASK)).all()
    assert np.isnan(outside_inside_ratio(MAP, everything)).all()
    assert mean_iou(nothing, ~everything) == [1]


def test_classes_count_alike():
    assert class_mean([1, 1, 1, 0], ["a", "a", "a", "b"]) == 0.5


# faithfulness -------------------------------------------------------------------------------


def test_faithfulness_of_the_specification():
    p, o = [0.8, 0.5, 0.4], [0.6, 0.7, 0.4]
    assert average_drop(p, o) == pytest.approx(8.3333, abs=1e-4)
    assert average_increase(p, o) == pytest.approx(33.3333, abs=1e-4)
    assert average_gain(p, o) == pytest.approx(13.3333, abs=1e-4)
    assert curve_area([0.9, 0.6, 0.3, 0.1]) == pytest.approx(0.466667, abs=1e-6)


def test_certain_and_impossible_classes():
    assert average_drop([0, 1], [0.5, 0]) == 50
    assert average_gain([1, 0], [0.5, 1]) == 50


@seeds
@few
def test_nobody_drops_and_gains_where_nothing_changes(seed):
    p = np.random.default_rng(seed).random(6)
    assert average_drop(p, p) == average_increase(p, p) == average_gain(p, p) == 0


WEIGHTS = np.random.default_rng(0).normal(size=(2 * 5 * 5, 3))


def proba(X):
    return softmax(X.reshape(len(X), -1) @ WEIGHTS, axis=1)


def images(seed, n=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2, 5, 5)), rng.normal(size=(n, 5, 5))


def test_masked_scores_by_hand():
    X, maps = images(0)
    p, o = masked_scores(proba, X, maps)
    for row, (image, one) in enumerate(zip(X, maps, strict=True)):
        share = (one - one.min()) / (one.max() - one.min())
        before, after = proba(image[None])[0], proba((image * share)[None])[0]
        assert p[row] == pytest.approx(before.max())
        assert o[row] == pytest.approx(after[before.argmax()])


def test_a_constant_map_keeps_the_image():
    X, maps = images(0)
    p, o = masked_scores(proba, X, np.zeros_like(maps), target=[0, 1, 2, 0])
    assert (p == o).all()


@seeds
@few
def test_curves_run_between_the_image_and_nothing(seed):
    X, maps = images(seed)
    columns = proba(X).argmax(axis=1)
    of = np.arange(len(X)), columns
    deleted = deletion_curve(proba, X, maps, steps=7)
    inserted = insertion_curve(proba, X, maps, steps=7)
    assert deleted.shape == inserted.shape == (len(X), 8)
    np.testing.assert_allclose(deleted[:, 0], proba(X)[of])
    np.testing.assert_allclose(deleted[:, -1], proba(0 * X)[of])
    np.testing.assert_allclose(inserted[:, -1], proba(X)[of])


def test_curves_by_hand():
    X, maps = images(1)
    columns = [2, 0, 1, 0]
    deleted = deletion_curve(proba, X, maps, target=columns, steps=5, baseline=0.5)
    inserted = insertion_curve(proba, X, maps, target=columns, steps=5, blur=1.5)
    for row, (image, one) in enumerate(zip(X, maps, strict=True)):
        gone = image.copy()
        seen = np.stack([gaussian_filter(channel, 1.5) for channel in image])
        ranked = sorted(np.ndindex(5, 5), key=lambda place: -one[place])
        for step in range(6):
            assert deleted[row, step] == pytest.approx(proba(gone[None])[0, columns[row]])
            assert inserted[row, step] == pytest.approx(proba(seen[None])[0, columns[row]])
            for i, j in ranked[5 * step : 5 * step + 5]:
                gone[:, i, j] = 0.5
                seen[:, i, j] = image[:, i, j]


def test_the_best_order_deletes_what_counts_first():
    """One channel, logit linear in the pixels: the order of w·x is optimal at each step."""
    rng = np.random.default_rng(0)
    w, X = rng.normal(size=25), rng.random((3, 1, 5, 5))

    def sigmoid(X):
        positive = 1 / (1 + np.exp(-X.reshape(len(X), -1) @ w))
        return np.stack([positive, 1 - positive], axis=1)

    def area(maps):
        curve = deletion_curve(sigmoid, X, maps, target=[0, 0, 0], steps=25)
        return curve_area(curve)

    best = area((w * X.reshape(3, -1)).reshape(3, 5, 5))
    for seed in range(20):
        assert (best <= area(np.random.default_rng(seed).random((3, 5, 5)))).all()


def test_tables_have_a_position_a_feature():
    X = np.random.default_rng(0).normal(size=(4, 50))
    assert deletion_curve(proba, X, X * WEIGHTS[:, 0], steps=3).shape == (4, 4)
    assert insertion_curve(proba, X, X * WEIGHTS[:, 0], steps=3).shape == (4, 4)


# similarity ---------------------------------------------------------------------------------


@seeds
@few
def test_rank_correlation_is_that_of_scipy(seed):
    maps, others = random_case(seed)[0], random_case(seed + 1)[0]
    found = map_similarity(maps, others)
    for row, (one, other) in enumerate(zip(maps, others, strict=True)):
        signed = spearmanr(one, other, axis=None).statistic
        absolute = spearmanr(abs(one), abs(other), axis=None).statistic
        assert found.spearman[row] == pytest.approx(signed)
        assert found.spearman_abs[row] == pytest.approx(absolute)


@seeds
@few
def test_equal_maps_up_to_their_scale_are_alike(seed):
    maps, _ = random_case(seed)
    np.testing.assert_allclose(map_similarity(maps, 3 * maps), 1)
    reversed_sign = map_similarity(maps, -maps)
    np.testing.assert_allclose(reversed_sign.spearman, -1)
    np.testing.assert_allclose(reversed_sign.drop(columns="spearman"), 1)


def windowed_ssim(one, other, side=7):
    """The definition, window by window."""
    c1, c2, found = 0.02**2, 0.06**2, []
    for i in range(one.shape[0] - side + 1):
        for j in range(one.shape[1] - side + 1):
            a, b = (m[i : i + side, j : j + side].ravel() for m in (one, other))
            (va, cov), (_, vb) = np.cov(a, b)
            top = (2 * a.mean() * b.mean() + c1) * (2 * cov + c2)
            found.append(top / (a.mean() ** 2 + b.mean() ** 2 + c1) / (va + vb + c2))
    return np.mean(found)


def direction_histogram(one):
    down, right = np.gradient(one)
    found = np.zeros((4, 4, 9))
    for (i, j), d in np.ndenumerate(down):
        angle = np.degrees(np.arctan2(d, right[i, j])) % 180
        cell = i * 4 // one.shape[0], j * 4 // one.shape[1]
        found[(*cell, min(int(angle // 20), 8))] += np.hypot(d, right[i, j])
    return found.ravel()


def test_similarity_by_definition():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 12, 10))
    others = maps + rng.normal(size=maps.shape)
    found = map_similarity(maps, others)
    for row in range(2):
        one, other = (abs(m[row]) / abs(m[row]).max() for m in (maps, others))
        assert found.ssim[row] == pytest.approx(windowed_ssim(one, other))
        hog = np.corrcoef(direction_histogram(one), direction_histogram(other))[0, 1]
        assert found.hog[row] == pytest.approx(hog)


def test_nothing_is_like_a_constant_map():
    found = map_similarity(MAP, np.ones_like(MAP))
    assert found.spearman.isna().all()
    assert list(map_similarity(MAP.reshape(1, 16), MAP.reshape(1, 16))) == [
        "spearman",
        "spearman_abs",
    ]


# errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pointing_game(MAP, MASK[:, :2]), r"masks must be a boolean array .* \(1, 4, 4\)"),
        (lambda: mean_iou(MAP, MASK * 1), r"boolean array .* got int64 .* box_masks"),
        (lambda: mean_iou(MAP, MASK, threshold=1), "threshold must be at least 0 and below 1"),
        (lambda: mass_inside(MAP * np.nan, MASK), "maps must hold finite numbers"),
        (lambda: map_similarity([1.0], [1.0]), r"maps must be of shape \(n_samples, positions"),
        (lambda: map_similarity(MAP, MAP[:, 1:]), "maps and others must have the same shape"),
        (lambda: class_mean([1, 2], [0]), r"same shape \(n_samples,\); got \(2,\) and \(1,\)"),
        (lambda: average_drop([2.0], [0.1]), "p must be probabilities between 0 and 1; got 2 to 2"),
        (lambda: average_gain([0.2], [0.1, 0.2]), r"o must be of shape .* got \(2,\)"),
        (lambda: curve_area([1.0]), r"curves must hold at least 2 points each; got shape \(1,\)"),
        *(
            (lambda n=n: deletion_curve(proba, *images(0), steps=n), "steps must be an integer of")
            for n in (0, 2.5, True)
        ),
        (lambda: masked_scores(proba, images(0)[0], MAP), r"maps must be of the shape of X"),
        (
            lambda: insertion_curve(proba, *images(0), target=[0.5] * 4),
            r"target must be one column .* 4 samples; got float64 of shape \(4,\)",
        ),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()
