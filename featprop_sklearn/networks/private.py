"""A user's network or layer, copied to work on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from featprop_sklearn.networks.in_place import copy_input
from featprop_sklearn.networks.outputs import tensors_in

__all__ = ["private_copy", "private_layer"]


def private_copy(module: nn.Module) -> nn.Module:
    """Copy a user's network to work on, in eval mode.

    A network that is frozen as a whole is unfrozen; one that is frozen in parts is not. One
    of 16-bit numbers becomes float32: the steps of training are below their resolution. An
    ``nn.TransformerEncoder`` computes in eval mode what it does in training: its shortcut for
    padded sequences, which puts zeros in their place, is switched off. Gradients of embeddings
    are dense, which is all that AdamW takes.

    Raises
    ------
    ValueError
        If the network cannot be copied.
    """
    try:
        twin = copy.deepcopy(module, _without_history(module)).eval()
    except Exception as error:
        raise ValueError(
            f"module ({type(module).__name__}) cannot be copied with copy.deepcopy: {error}. "
            "The estimators never change the network that they are given, so they need a copy: "
            "remove what cannot be copied (open files, locks, tensors with a history in objects)."
        ) from error
    if not any(parameter.requires_grad for parameter in twin.parameters()):
        twin.requires_grad_(True)  # frozen as a whole: for inference, not against training
    dtypes = {t.dtype for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point()}
    if dtypes and dtypes <= {torch.float16, torch.bfloat16}:
        twin.float()
    for part in twin.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False
    return twin


def _without_history(module: nn.Module) -> dict[int, Any]:
    """Copy the tensors kept from an earlier run, for copy.deepcopy, which refuses them."""
    return {
        id(kept.value): kept.value.detach().clone()
        for part in module.modules()
        for kept in tensors_in(vars(part))
        if not kept.value.is_leaf
    }


def private_layer(layer: nn.Module) -> nn.Module:
    """Copy a layer to work on: eval mode, its input never overwritten.

    Raises
    ------
    ValueError
        If the layer cannot be copied.
    """
    twin = private_copy(layer)
    if any(getattr(part, "inplace", False) for part in twin.modules()):
        twin.register_forward_pre_hook(copy_input)
    return twin
