"""What comes in: validation, shapes, batches, dtype and device."""

from featprop_sklearn.data.tensors import (
    batches,
    module_device,
    module_dtype,
    resolve_device,
    to_array,
    to_tensor,
)
from featprop_sklearn.data.validation import check_samples, shape_samples

__all__ = [
    "batches",
    "check_samples",
    "module_device",
    "module_dtype",
    "resolve_device",
    "shape_samples",
    "to_array",
    "to_tensor",
]
