"""Of bitsandbytes, read from 0.49: scales of 8-bit weights, and layers that stop training on CPU."""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn


def float_weight(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight of a layer in float, (out, in), dequantized where it is quantized."""
    weight: Any = module.weight
    found: Tensor = weight.data
    if weight.is_floating_point():
        return found
    if isinstance(module, Linear8bitLt):
        # Before the first forward the scales are with the weight, then with the layer's state.
        scales = weight.SCB if module.state.SCB is None else module.state.SCB
        found = found.float() * scales.float()[:, None] / 127
    else:
        found = dequantize_4bit(found, weight.quant_state)
    return found.to(dtype)


def keep_trainable(module: nn.Module) -> None:
    """Keep a 4-bit layer from packing its weights at the first inference on CPUs with AVX512-BF16.

    No gradient flows through a packed layer, in training mode either.
    """
    if isinstance(module, Linear4bit):
        module.support_avx512bf16_for_cpu = False


def eight_bit_layers(model: nn.Module) -> list[Linear8bitLt]:
    """The layers of 8 bits within a model."""
    return [module for module in model.modules() if isinstance(module, Linear8bitLt)]


def keep_arithmetic(layer: Linear8bitLt) -> None:
    """Keep an 8-bit layer on CPU in training mode.

    In eval mode its activations have 8 bits too, and log-probs of a rollout would differ from those of the update.
    """
    if layer.weight.device.type == "cpu":
        layer.training = True
