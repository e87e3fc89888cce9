"""Weights of an export: the base in float with a role's adapter merged in, never touching the base itself."""

import torch
from peft.utils.integrations import dequantize_module_weight
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
            if name == "weight":
                value = _weight(module, value, DTYPES[backbone.spec.dtype])
                if module in adapted:
                    value = value.float().add_(adapted[module].get_delta_weight(role).float()).to(value.dtype)
            state[f"{prefix}.{name}" if prefix else name] = value.detach().cpu()
    return state


def _layers(backbone: Backbone, role: str | None) -> list[nn.Module]:
    return list(backbone.adapted_layers(role)) if role in backbone.adapters else []


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    buffers = [
        (name, value)
        for name, value in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set  # noqa: SLF001 - torch has no public name for it
    ]
    return [*module.named_parameters(recurse=False), *buffers]


def _weight(module: nn.Module, value: Tensor, dtype: torch.dtype) -> Tensor:
    # Copies, so that what is merged in place is ours; float parameters that aren't adapted need none.
    if value.is_floating_point():
        return value
    dequantized: Tensor = dequantize_module_weight(module)
    return dequantized.to(dtype)
