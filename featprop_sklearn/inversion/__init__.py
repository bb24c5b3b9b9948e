"""Nearest preimages of layers: one layer family a file, found through the registry."""

from featprop_sklearn.inversion import (
    affine,
    flat,
    function_stages,
    max_pool,
    monotone,
    non_monotone,
    normalisation,
    softmax,
)
from featprop_sklearn.inversion.base import InversionOptions, Inverter, UnsupportedLayerError
from featprop_sklearn.inversion.layer_inverter import LayerInverter
from featprop_sklearn.inversion.pipeline import make_inversion_pipeline, pipeline_of_layers
from featprop_sklearn.inversion.prepare import condition_of, prepare_inverter
from featprop_sklearn.inversion.registry import (
    inversion_method,
    keeps_bounds,
    register_inverter,
    registered_layers,
)

for _family in (
    affine,
    monotone,
    flat,
    non_monotone,
    softmax,
    max_pool,
    normalisation,
    function_stages,
):
    for _layer_type, _inverter in _family.INVERTERS.items():
        register_inverter(_layer_type, _inverter)

__all__ = [
    "InversionOptions",
    "Inverter",
    "LayerInverter",
    "UnsupportedLayerError",
    "condition_of",
    "inversion_method",
    "keeps_bounds",
    "make_inversion_pipeline",
    "pipeline_of_layers",
    "prepare_inverter",
    "register_inverter",
    "registered_layers",
]
