"""How a decoder makes one step of a decode: by its own forward, or packed."""

from typing import Protocol

from torch import Tensor

from lit_rlhf.internals.transformers import cache_argument
from lit_rlhf.models import Backbone
from lit_rlhf.models.kernels.packed import PackedStep, packable
from lit_rlhf.rollout.kv_cache import DecodeCache, attending, configs_of

_WORTH_PACKING = 6


class DecodeStep(Protocol):
    """One more token of each row of a cache."""

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> tuple[Tensor, Tensor]:
        """Hidden states (rows, h) and float32 logits (rows, V) after tokens (rows,)."""


class ModelStep:
    """A step by the decoder's own forward, under the role that is active when it is called."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.configs = configs_of(backbone.decoder)

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> tuple[Tensor, Tensor]:
        """See `DecodeStep`."""
        decoder = self.backbone.decoder
        with attending(self.configs, cache):
            output = decoder(
                input_ids=tokens[:, None],
                position_ids=cache.positions[:, None],
                use_cache=True,
                **{cache_argument(decoder): cache},
            )
        hidden = output.last_hidden_state[:, 0]
        return hidden, self.backbone.logits(hidden)


def choose_step(backbone: Backbone, steps: int) -> DecodeStep:
    """The way to decode with the role that is active: packed, with the backbone's `kernels: auto`, where that pays.

    Args:
        backbone: Whose weights to use.
        steps: About how many there will be: packing takes as long as two or three.
    """
    pack = backbone.spec.kernels == "auto" and steps >= _WORTH_PACKING
    if pack and packable(backbone.model):
        return PackedStep(backbone.model, backbone.logits)
    return ModelStep(backbone)
