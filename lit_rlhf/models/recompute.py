"""Gradient checkpointing of decoder layers."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.transformers import recompute

Contexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
"""Called at each layer's forward: contexts for the forward and for the recomputation."""


def recompute_layers(decoder: nn.Module, contexts: Contexts, *, draws: bool) -> None:
    """Store each layer's input alone in training mode, and compute the layer again in backward.

    Args:
        decoder: The trunk.
        contexts: What the two passes run under.
        draws: Whether layers draw random numbers (dropout), which then must be the same in both passes.

    Raises:
        ConfigurationError: The architecture has no layers that can be recomputed.
    """
    layers = [
        module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise ConfigurationError(
            f"gradient_checkpointing: {type(decoder).__name__} has no layers that can be recomputed. Set it to false."
        )
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)
    for layer in layers:
        recompute(layer, run)
