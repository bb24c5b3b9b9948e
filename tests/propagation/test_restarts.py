"""Where a search begins again: known features of the same label, and scattered ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featprop_sklearn.propagation.restarts import borrowed_start, scattered_start, smoothed


def nearest_by_hand(feature, label, known, known_label, exact):
    moves = torch.zeros_like(feature)
    for i in range(len(feature)):
        differ = [float((label[i] - other).abs().max()) for other in known_label]
        if not differ or (exact and min(differ) > 0):
            continue
        candidates = [k for k in range(len(known)) if differ[k] == min(differ)]
        nearest = min(candidates, key=lambda k: float((known[k] - feature[i]).norm()))
        moves[i] = known[nearest] - feature[i]
    return moves


@given(
    seed=st.integers(0, 1000),
    n_samples=st.integers(1, 6),
    n_known=st.integers(0, 8),
    n_labels=st.integers(1, 3),
    n_classes=st.integers(1, 4),
    exact=st.booleans(),
)
def test_the_nearest_feature_with_the_nearest_label(
    seed, n_samples, n_known, n_labels, n_classes, exact
):
    torch.manual_seed(seed)
    feature, known = torch.randn(n_samples, 5).double(), torch.randn(n_known, 5).double()
    label = torch.randint(n_classes, (n_samples, n_labels))
    known_label = torch.randint(n_classes, (n_known, n_labels))
    found = borrowed_start(feature, label, known, known_label, exact=exact)
    expected = nearest_by_hand(feature, label, known, known_label, exact)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_regression_borrows_from_the_nearest_value():
    feature, known = torch.zeros(2, 2), torch.tensor([[1.0, 0], [9.0, 9], [2.0, 2]])
    label, known_label = torch.tensor([[0.9], [-3.0]]), torch.tensor([[0.0], [1.0], [5.0]])
    found = borrowed_start(feature, label, known, known_label, exact=False)
    assert found.tolist() == [[9, 9], [1, 0]]
    assert not borrowed_start(feature, label, known, known_label, exact=True).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scattered_starts_repeat_and_leave_the_global_generator_alone(dtype):
    feature = torch.randn(6, 40).to(dtype)
    state = torch.get_rng_state()
    first, again = scattered_start(feature, 0.5), scattered_start(feature, 0.5)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == dtype


def test_a_scattered_start_is_the_same_in_any_batch():
    feature = torch.randn(6, 40)
    rows = torch.tensor([4, 1])
    assert torch.equal(scattered_start(feature, 2)[rows], scattered_start(feature[rows], 2))


def test_scattered_starts_have_the_size_of_the_features():
    feature = torch.randn(3, 2000) * torch.tensor([[0.01], [1.0], [100.0]])
    for spread in (0.5, 4.0):
        ratio = scattered_start(feature, spread).norm(dim=1) / feature.norm(dim=1)
        torch.testing.assert_close(ratio, torch.full((3,), spread), rtol=0.1, atol=0)


def smoothed_outputs(tail, feature, rows, spread=1.0, seed=0):
    return smoothed(tail, feature, rows, spread, seed)(feature, rows)


def test_an_affine_tail_is_not_changed_by_smoothing():
    feature, weight = torch.randn(5, 2, 3).double(), torch.randn(6, 4).double()
    found = smoothed_outputs(
        lambda value, rows: value.flatten(1) @ weight, feature, torch.arange(5)
    )
    torch.testing.assert_close(found, feature.flatten(1) @ weight)


def test_a_smoothed_unit_that_is_off_has_a_derivative():
    feature = -torch.ones(3, 4).double()
    rows = torch.arange(3)
    feature.requires_grad_()
    for spread, share in ((0.01, 0.0), (100.0, 0.5)):
        tail = smoothed(lambda value, rows: value.relu(), feature.detach(), rows, spread, 0)
        (gradient,) = torch.autograd.grad(tail(feature, rows).sum(), feature)
        # noise of either sign and far larger than the unit is wakes it in half of the copies
        assert torch.equal(gradient, torch.full_like(gradient, share))


def test_smoothing_is_the_same_in_any_batch_order_and_precision():
    feature, rows = torch.randn(4, 6).double(), torch.tensor([7, 2, 9, 0])

    def tail(value, rows):
        return value.relu() * (1 + rows[:, None])

    whole = smoothed_outputs(tail, feature, rows)
    pick = torch.tensor([2, 0, 2])
    part = smoothed(tail, feature[[2, 0]], rows[[2, 0]], 1.0, 0)(feature[pick], rows[pick])
    torch.testing.assert_close(part, whole[pick])
    single = smoothed_outputs(tail, feature.float(), rows)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-5, atol=1e-5)
    assert not torch.equal(smoothed_outputs(tail, feature, rows, seed=1), whole)
