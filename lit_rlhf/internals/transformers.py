"""Of transformers, read from 5.24: attention by name, caches' argument, recomputation, drawing of weights, files."""

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.pytorch_utils import Conv1D

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

ONE_AT_A_TIME = threading.RLock()
"""Held while a model is made or loaded. transformers replaces functions of torch and of its own meanwhile: of two
threads, the later one would put back for good what the earlier one had put there, and heads be tied no more."""


def attention_of(config: PretrainedConfig) -> str | None:
    """The name of the attention function that layers of a config look up at each call."""
    name: str | None = config._attn_implementation
    return name


def set_attention(config: PretrainedConfig, name: str | None) -> None:
    """Write that name without the checks of `set_attn_implementation`; None lets who loads the config choose."""
    config._attn_implementation = name


def as_in_files(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights by the names and in the shapes in which `save_pretrained` writes them, tied ones once."""
    once = remove_tied_weights_from_state_dict(dict(state), model)
    written: dict[str, Tensor] = revert_weight_conversion(model, once)
    return written


def takes_attention_functions(decoder: nn.Module) -> bool:
    """Whether a decoder's layers call the attention function that the config names."""
    return bool(getattr(decoder, "_supports_attention_backend", False))


def accepts(decoder: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of a decoder's forward, seen through transformers' decorators."""
    return inspect.signature(inspect.unwrap(type(decoder).forward)).parameters


def cache_argument(decoder: nn.Module) -> str:
    """The name under which a decoder takes its cache: 5.24 renamed it."""
    return "cache" if "cache" in accepts(decoder) else "past_key_values"


def without_comparison(module: nn.Module) -> None:
    """Let layers that are recomputed do without torch's comparison of what both passes keep."""
    layer: Any
    for layer in module.modules():
        run = getattr(layer, "_gradient_checkpointing_func", None)
        if run is not None:
            layer._gradient_checkpointing_func = partial(run, determinism_check="none")


def recompute(layer: GradientCheckpointingLayer, run: Callable[..., Any]) -> None:
    """Let a layer's forward go through a function like `torch.utils.checkpoint.checkpoint` in training mode.

    transformers' own switch does this too, and makes the embeddings ask for gradients.
    """
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = run  # type: ignore[assignment]


def drawn_once(make: Callable[[], ModelT], device: torch.device) -> ModelT:
    """A model whose weights are drawn once, by the model's own rule.

    torch's layers draw theirs as they are made, which transformers then draws anew, and of a tied head once more.

    Args:
        make: Makes the model; called where nothing has numbers.
        device: Where the weights are drawn.
    """
    with torch.device("meta"):
        model = make()
    model.to_empty(device=device)
    for layer in model.modules():
        if isinstance(layer, Conv1D):  # not each rule knows of it: it draws its own
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    for name in model.all_tied_weights_keys:
        model.get_parameter_or_buffer(name)._is_hf_initialized = True
    with device:
        model.init_weights()
    return model
