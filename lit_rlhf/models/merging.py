"""Weights of an export: the base in float with a role's adapter merged in, never touching the base itself."""

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.internals.bitsandbytes import float_weight
from lit_rlhf.internals.torch import state_tensors
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.loading import dtype_of


@torch.no_grad()
def merged_state(
    backbone: Backbone, role: str | None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The model's parameters with an adapter merged in, by their names in a model without adapters.

    A quantized base is dequantized into the copy first: merging into its 4-bit weights would round the adapter away.

    Args:
        backbone: Its `model` gives the names.
        role: Whose adapter; None or a role without one gives the base.
        device: Where they are put; those that nothing changes and that are there already aren't copied.
    """
    adapted = {layer.get_base_layer(): layer for layer in _layers(backbone, role)}
    state: dict[str, Tensor] = {}
    for path, module in backbone.model.named_modules():
        if ".lora_" in path:
            continue
        prefix = path.replace(".base_layer", "")
        for name, value in state_tensors(module):
            tensor = value
            if name == "weight":
                tensor = float_weight(module, dtype_of(backbone.spec))
                if module in adapted:
                    delta = adapted[module].get_delta_weight(role)
                    tensor = (tensor.float() + delta.float()).to(tensor.dtype)
            state[f"{prefix}.{name}" if prefix else name] = tensor.detach().to(device)
    return state


def _layers(backbone: Backbone, role: str | None) -> list[Any]:
    return (
        list(backbone.adapted_layers(role))
        if role is not None and role in backbone.adapters
        else []
    )
