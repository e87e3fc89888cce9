"""A decode step that is recorded once and replayed: on a GPU its hundreds of small kernels start as one CUDA graph.

Python takes longer to start them one by one than a GPU takes to compute them, by ten times for a model of 0.5B. A
recorded step does what it did when it was recorded, at the same addresses: so tokens go into a buffer, the place of the
next position is read from the device, and when the cache's memory moves the step is recorded anew.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_rlhf.rollout.kv_cache import DecodeCache

States = tuple[Tensor, Tensor]
"""Hidden states (rows, h) and logits (rows, V)."""
Recorder = Callable[[Callable[[], States]], tuple[Callable[[], None], States]]
"""Records what a function does, and gives what does it again and where its results then are."""


class DecodeStep(Protocol):
    """One more token of each row of a cache."""

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> States:
        """Hidden states (rows, h) and float32 logits (rows, V) after tokens (rows,)."""


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
            cache.place.mask(cache.room)
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
        # "thread_local": other threads, which pin batches of data say, may go on.
        recording = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )
        with recording:
            results = once()
        return graph.replay, results
