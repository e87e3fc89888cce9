"""Weights of an export: the base in float with a role's adapter merged in, never touching the base itself."""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor, nn

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.loading import DTYPES


@torch.no_grad()
def merged_state(backbone: Backbone, role: str | None) -> dict[str, Tensor]:
    """The model's parameters on CPU with an adapter merged in, by their names in a model without adapters.

    A quantized base is dequantized into the copy first: merging into its 4-bit weights would round the adapter away.

    Args:
        backbone: Its `model` gives the names.
        role: Whose adapter; None or a role without one gives the base.
    """
    adapted = {layer.get_base_layer(): layer for layer in _layers(backbone, role)}
    state: dict[str, Tensor] = {}
    for path, module in backbone.model.named_modules():
        if ".lora_" in path:
            continue
        prefix = path.replace(".base_layer", "")
        for name, value in _own_tensors(module):
            tensor = value
            if name == "weight":
                tensor = _float_weight(module, value, DTYPES[backbone.spec.dtype])
                if module in adapted:
                    delta = adapted[module].get_delta_weight(role)
                    tensor = (tensor.float() + delta.float()).to(tensor.dtype)
            state[f"{prefix}.{name}" if prefix else name] = tensor.detach().cpu()
    return state


def _layers(backbone: Backbone, role: str | None) -> list[Any]:
    return (
        list(backbone.adapted_layers(role))
        if role is not None and role in backbone.adapters
        else []
    )


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    buffers = [
        (name, value)
        for name, value in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set  # noqa: SLF001 - torch has no public name for it
    ]
    return [*module.named_parameters(recurse=False), *buffers]


def _float_weight(module: nn.Module, value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_floating_point():
        return value
    weight: Any = module.weight
    if isinstance(module, Linear8bitLt):
        # Before the first forward the scales are with the weight, then with the layer's state.
        scales = weight.SCB if module.state.SCB is None else module.state.SCB
        return (value.float() * scales.float()[:, None] / 127).to(dtype)
    dequantized: Tensor = dequantize_4bit(value.data, weight.quant_state)
    return dequantized.to(dtype)
