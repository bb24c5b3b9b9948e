"""Arrays to tensors and back, devices, batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.data import (
    batches,
    double_device,
    module_device,
    module_dtype,
    plain_torch,
    resolve_device,
    to_array,
    to_double,
    to_tensor,
)


@given(n_samples=st.integers(0, 2000), batch_size=st.integers(1, 300))
def test_batches_cover_all_rows_in_nearly_equal_lengths(n_samples, batch_size):
    slices = list(batches(n_samples, batch_size))
    rows = [row for rows in slices for row in range(n_samples)[rows]]
    assert rows == list(range(n_samples))
    lengths = [rows.stop - rows.start for rows in slices]
    assert max(lengths) <= batch_size
    assert max(lengths) - min(lengths) <= 1
    assert len(slices) == max(1, int(np.ceil(n_samples / batch_size)))


def test_no_batch_of_one_row_is_left_over():
    assert list(batches(257, 256)) == [slice(0, 128), slice(128, 257)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6).reshape(2, 3)[:, ::-1],
        np.arange(3.0).reshape(1, 3)[::-1],
        [[1, 2], [3, 4]],
    ],
    ids=["floats", "reversed integers", "one reversed row", "list"],
)
def test_to_tensor_copies_values(array, dtype):
    tensor = to_tensor(array, dtype)
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor, np.asarray(array))


def test_to_tensor_shares_no_memory_and_takes_read_only_arrays():
    array = np.zeros(3)
    array.flags.writeable = False  # torch.from_numpy would warn
    to_tensor(array, torch.float64).add_(1)
    np.testing.assert_array_equal(array, 0)


def test_numbers_of_several_kinds():
    mixed = np.array([[1.5, True], [2, np.float32(0.25)]], dtype=object)
    assert to_tensor(mixed, torch.float32).tolist() == [[1.5, 1], [2, 0.25]]
    with pytest.raises(ValueError, match="could not convert string to float: 'a'"):
        to_tensor(np.array([[1.5, "a"]], dtype=object), torch.float32)


def test_to_array():
    tensor = torch.arange(3.0, requires_grad=True)
    np.testing.assert_array_equal(to_array(tensor), [0, 1, 2])
    assert to_array(tensor).dtype == np.float32
    assert to_array(tensor, np.float64).dtype == np.float64


def test_dtype_and_device_of_a_network():
    embedding_ids = nn.Module()
    embedding_ids.register_buffer("ids", torch.arange(3))
    assert module_dtype(nn.Linear(2, 2).double()) == torch.float64
    assert module_dtype(nn.Sequential(embedding_ids, nn.Linear(2, 2).half())) == torch.float16
    assert module_dtype(embedding_ids) == torch.float32
    assert module_device(embedding_ids) == torch.device("cpu")
    assert module_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert module_device(nn.ReLU()) == torch.device("cpu")


def test_auto_device_is_the_accelerator(accelerator):
    assert resolve_device("auto") == torch.device(accelerator)


def test_auto_device_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


def test_device_without_float64(without_double):
    assert double_device(torch.device(without_double)) == torch.device("cpu")
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"has no float64, in which .* Use 'auto' or 'cpu'"):
        resolve_device(without_double)


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
def test_device_with_float64(place, request):
    device = place if place == "cpu" else request.getfixturevalue(place)
    assert double_device(torch.device(device)) == torch.device(device)
    assert resolve_device(device) == torch.device(device)


def test_device_itself():
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 1.5, None])
def test_device_that_is_not_there(device):
    with pytest.raises(
        ValueError, match=r"^device=.* cannot be used here: (.|\n)*Use 'auto', 'cpu' or an acc"
    ):
        resolve_device(device)


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
def test_what_a_caller_has_switched_on_is_off_inside(place, request):
    device = place if place == "cpu" else request.getfixturevalue(place)
    x = torch.randn(4, 3, device=device)
    linear = torch.nn.Linear(3, 2, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), torch.inference_mode():
        assert linear(x).dtype == torch.bfloat16
        with plain_torch():
            y = linear(x.clone())
            assert y.dtype == torch.float32
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
        assert linear(x).dtype == torch.bfloat16


@pytest.mark.parametrize("around", [False, True])
def test_a_network_s_own_autocast_forgets_its_weights_after_each_run(around):
    x = torch.ones(1, 1)
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(linear.weight)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float(linear(x).detach())

    with torch.autocast("cpu", enabled=around):
        with plain_torch():
            assert run() == 1
            torch.nn.init.zeros_(linear.weight)
            assert run() == 0
        depth = torch.autocast_increment_nesting()
        torch.autocast_decrement_nesting()
        assert depth == 2  # as it was


def test_to_double_keeps_complex_numbers():
    module = torch.nn.Linear(3, 2, bias=False)
    module.phases = torch.nn.Parameter(torch.tensor([1 + 2j, 3j], dtype=torch.complex64))
    module.register_buffer("counts", torch.tensor([1, 2]))
    weight = module.weight.detach().clone()
    assert to_double(module) is module
    assert module.weight.dtype == torch.float64
    torch.testing.assert_close(module.weight.detach(), weight.double(), rtol=0, atol=0)
    assert module.phases.tolist() == [1 + 2j, 3j]
    assert module.phases.dtype == torch.complex128
    assert module.counts.dtype == torch.int64
