"""What comes in: validation, shapes, batches, dtype and device."""

from featprop_sklearn.data.packing import Layout, Part, check_whole, is_named, pack
from featprop_sklearn.data.tensors import (
    batches,
    module_device,
    module_dtype,
    resolve_device,
    to_array,
    to_tensor,
)
from featprop_sklearn.data.validation import check_samples, shape_samples, without_torch

__all__ = [
    "Layout",
    "Part",
    "batches",
    "check_samples",
    "check_whole",
    "is_named",
    "module_device",
    "module_dtype",
    "pack",
    "resolve_device",
    "shape_samples",
    "to_array",
    "to_tensor",
    "without_torch",
]
