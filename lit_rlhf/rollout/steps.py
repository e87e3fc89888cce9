"""How a decoder makes one step of a decode: by its own forward or packed, and on a GPU recorded once and replayed."""

from typing import NamedTuple

from torch import Tensor

from lit_rlhf.internals.torch import is_altered
from lit_rlhf.internals.transformers import cache_argument
from lit_rlhf.models import Backbone, agreed, gathered, is_sharded
from lit_rlhf.models.kernels.packed import PackedStep, packable
from lit_rlhf.rollout.kv_cache import DecodeCache, attending, configs_of
from lit_rlhf.rollout.recorded import DecodeStep, GraphRecorder, RecordedStep

_WORTH_PACKING = 6


class Pace(NamedTuple):
    """What a decode does between steps, in steps and rows."""

    room: int
    """Positions that the cache grows by."""
    look_every: int
    """Steps between two looks at which rows have ended: each waits for the device."""
    worth_leaving: int
    """Rows leave when they are at least one in so many. That costs a copy of the others' keys and values: about what a
    step of an eighth of the rows costs."""


EAGER = Pace(room=32, look_every=1, worth_leaving=8)
RECORDED = Pace(room=256, look_every=8, worth_leaving=2)
"""A recorded step is recorded anew when the cache grows or rows leave, which takes as long as some steps."""


def pace_of(step: DecodeStep) -> Pace:
    """How a decode by this step goes."""
    return RECORDED if isinstance(step, RecordedStep) else EAGER


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


def packs(backbone: Backbone, steps: int, *, dequantize: bool = False) -> bool:
    """Whether to decode from a copy of the layers: with the backbone's `kernels: auto`, where that pays.

    Sharded layers are copied one after another, on all processes or on none.

    Args:
        backbone: Whose weights to use.
        steps: About how many there will be: packing takes as long as two or three.
        dequantize: Decode quantized layers from a copy in float.
    """
    able = recordable(backbone, steps) and packable(backbone.model, dequantize=dequantize)
    return not agreed(backbone, not able)


def choose_step(
    backbone: Backbone, steps: int, *, dequantize: bool = False, packed: bool | None = None
) -> DecodeStep:
    """The way to decode with the role that is active; on a GPU the step is recorded.

    Args:
        backbone: Whose weights to use.
        steps: As for `packs`.
        dequantize: The same.
        packed: What `packs` said, where it was asked before.
    """
    if packs(backbone, steps, dequantize=dequantize) if packed is None else packed:
        gather = gathered if is_sharded(backbone) else None
        step: DecodeStep = PackedStep(backbone.model, backbone.logits, gather)
    else:
        step = ModelStep(backbone)
        if is_sharded(backbone) or not recordable(backbone, steps):
            return step
    return RecordedStep(step, GraphRecorder()) if backbone.device.type == "cuda" else step


def recordable(backbone: Backbone, steps: int) -> bool:
    """Whether some steps may be packed, and on a GPU recorded: what hooks do on the host, replays would leave out."""
    worthwhile = backbone.spec.kernels == "auto" and steps >= _WORTH_PACKING
    return worthwhile and not any(map(is_altered, backbone.model.modules()))
