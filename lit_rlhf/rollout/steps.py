"""How a decoder makes one step of a decode: by its own forward or packed, and on a GPU recorded once and replayed.

Python takes longer to start the hundreds of small kernels of a step one by one than a GPU to compute them, by ten times
for a model of 0.5B: there they start as one CUDA graph. A recorded step does what it did when it was recorded, at the
same addresses: so tokens go into a buffer, the place of the next position is read from the device, and when the cache's
memory moves the step is recorded anew.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_rlhf.internals.torch import is_altered
from lit_rlhf.internals.transformers import cache_argument
from lit_rlhf.models import Backbone, agreed, gathered, is_sharded
from lit_rlhf.models.kernels.packed import PackedStep, packable
from lit_rlhf.rollout.kv_cache import DecodeCache, attending, configs_of

_WORTH_PACKING = 6
States = tuple[Tensor, Tensor]
"""Hidden states (rows, h) and logits (rows, V)."""
Recorder = Callable[[Callable[[], States]], tuple[Callable[[], None], States]]
"""Records what a function does, and gives what does it again and where its results then are."""


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


class DecodeStep(Protocol):
    """One more token of each row of a cache."""

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> States:
        """Hidden states (rows, h) and float32 logits (rows, V) after tokens (rows,)."""


class ModelStep:
    """A step by the decoder's own forward, under the role that is active when it is called."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.configs = configs_of(backbone.decoder)

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> States:
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


class RecordedStep:
    """A step by way of a recording, for as long as it can be recorded; then by itself.

    Its results stand where the next step writes: who keeps them copies them.

    Args:
        step: What is recorded: it neither reads the device nor does otherwise by what the host counts.
        record: How; `record_graph` on a GPU.
    """

    def __init__(self, step: DecodeStep, record: Recorder) -> None:
        self.step, self.record = step, record
        self.recorded: tuple[DecodeCache, int] | None = None
        self.failed = False

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> States:
        """See `DecodeStep`."""
        if self.failed:
            return self.step(tokens, cache)
        cache.place.follow(tokens.device)
        if self.recorded is None or self.recorded != (cache, cache.layout):
            try:
                self._record(tokens, cache)
            except RuntimeError as error:
                self.failed = True
                cache.place.slot = cache.place.behind = None
                rank_zero_warn(
                    "A decode step of this model can't be recorded as a CUDA graph: its kernels start one by one, "
                    f"which is several times slower. {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                )
                return self.step(tokens, cache)
        self.tokens.copy_(tokens)
        self.replay()
        return self.results

    def _record(self, tokens: Tensor, cache: DecodeCache) -> None:
        self.recorded = None
        self.tokens = tokens.clone()

        def once() -> States:
            cache.follow_device()
            return self.step(self.tokens, cache)

        self.replay, self.results = self.record(once)
        self.recorded = (cache, cache.layout)


class GraphRecorder:
    """Records CUDA graphs, one after another in the same memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()

    def __call__(self, once: Callable[[], States]) -> tuple[Callable[[], None], States]:
        """See `Recorder`."""
        # What libraries do at a first call can't be recorded. The step's writes are those that the replay repeats.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            once()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads, which pin batches of data say, may go on
        with torch.cuda.graph(graph, self.pool, self.stream, mode):
            results = once()
        return graph.replay, results


def pace_of(step: DecodeStep) -> Pace:
    """How a decode by this step goes."""
    return RECORDED if isinstance(step, RecordedStep) else EAGER


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
