"""What comes in: validation, shapes, batches, dtype and device."""

from featprop_sklearn.data.lazy_rows import (
    Inputs,
    LazyRows,
    TensorRows,
    join_rows,
    take_rows,
    to_inputs,
)
from featprop_sklearn.data.packing import Layout, Part, check_whole, is_named, pack
from featprop_sklearn.data.row_store import RowStore
from featprop_sklearn.data.sources import DatasetSource, find_source, is_large
from featprop_sklearn.data.tensors import (
    batches,
    double_device,
    module_device,
    module_dtype,
    plain_torch,
    resolve_device,
    spread_rows,
    to_array,
    to_double,
    to_tensor,
)
from featprop_sklearn.data.validation import check_rows, check_samples, shape_samples, without_torch

__all__ = [
    "DatasetSource",
    "Inputs",
    "Layout",
    "LazyRows",
    "Part",
    "RowStore",
    "TensorRows",
    "batches",
    "check_rows",
    "check_samples",
    "check_whole",
    "double_device",
    "find_source",
    "is_large",
    "is_named",
    "join_rows",
    "module_device",
    "module_dtype",
    "pack",
    "plain_torch",
    "resolve_device",
    "shape_samples",
    "spread_rows",
    "take_rows",
    "to_array",
    "to_double",
    "to_inputs",
    "to_tensor",
    "without_torch",
]
