"""The user's network, read as a chain of stages."""

from featprop_sklearn.networks.chain import (
    Chain,
    Stage,
    build_chain,
    last_layer_type,
)
from featprop_sklearn.networks.conversion import Network, as_network
from featprop_sklearn.networks.default import Rescale, default_network
from featprop_sklearn.networks.functional import Exp, Permute, Reshape
from featprop_sklearn.networks.inputs import (
    Unpack,
    input_dtype,
    reads_integers,
    refuse_sequence,
    with_inputs,
)
from featprop_sklearn.networks.layers import is_layer, treat_as_layer
from featprop_sklearn.networks.listing import WatchedRun
from featprop_sklearn.networks.outputs import SingleOutput
from featprop_sklearn.networks.private import private_copy, private_layer
from featprop_sklearn.networks.probe import probe_network
from featprop_sklearn.networks.ranges import output_ranges
from featprop_sklearn.networks.recurrent import differentiable
from featprop_sklearn.networks.sequential import open_sequential
from featprop_sklearn.networks.sharing import SharedParameters
from featprop_sklearn.networks.sites import AFFINE_LAYERS, Site, affine_sites, reasons_against
from featprop_sklearn.networks.splits import chain_splits, resolve_splits
from featprop_sklearn.networks.stand_in import unwrap

__all__ = [
    "AFFINE_LAYERS",
    "Chain",
    "Exp",
    "Network",
    "Permute",
    "Rescale",
    "Reshape",
    "SharedParameters",
    "SingleOutput",
    "Site",
    "Stage",
    "Unpack",
    "WatchedRun",
    "affine_sites",
    "as_network",
    "build_chain",
    "chain_splits",
    "default_network",
    "differentiable",
    "input_dtype",
    "is_layer",
    "last_layer_type",
    "open_sequential",
    "output_ranges",
    "private_copy",
    "private_layer",
    "probe_network",
    "reads_integers",
    "reasons_against",
    "refuse_sequence",
    "resolve_splits",
    "treat_as_layer",
    "unwrap",
    "with_inputs",
]
