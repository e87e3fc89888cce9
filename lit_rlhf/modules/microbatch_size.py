"""How many padded tokens a policy computes at a time: as the option says, or as many as a GPU's memory has room for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_rlhf.distributed import gather_objects
from lit_rlhf.modules.phases import Phases
from lit_rlhf.types import Rollout

START = 8192
"""Tokens of `auto` until it is chosen; on a CPU always."""
LEAST, MOST = 1024, 65536
"""What is chosen lies between; larger passes are no faster."""
SHARE = 0.6
"""Of the free memory; the rest is for rows that are longer than those measured, for holes, and for other phases."""


class Memory(Protocol):
    """Bytes of a device, as its allocator counts them."""

    def allocated(self) -> int:
        """What tensors take now."""

    def peak(self) -> int:
        """The most that they took since `forget_peak`."""

    def forget_peak(self) -> None:
        """Let the peak begin anew at what they take now."""

    def free(self) -> int:
        """What they could take more, with what the allocator holds and doesn't use."""

    def card(self) -> str:
        """What device it is of, and how much there is in all."""


class CudaMemory:
    """That of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated(self) -> int:
        """See `Memory`."""
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """See `Memory`."""
        return torch.cuda.max_memory_allocated(self.device)

    def forget_peak(self) -> None:
        """See `Memory`."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def free(self) -> int:
        """See `Memory`."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - self.allocated()

    def card(self) -> str:
        """See `Memory`."""
        found = torch.cuda.get_device_properties(self.device)
        return f"{found.name} of {found.total_memory / 2**30:.1f} GiB"


def memory_of(device: torch.device) -> Memory | None:
    """Of a GPU; None elsewhere."""
    return CudaMemory(device) if device.type == "cuda" else None


def fitting_tokens(free: float, per_token: float) -> int:
    """The largest power of two of padded tokens that takes at most `SHARE` of what is free, from `LEAST` to `MOST`.

    Args:
        free: Bytes.
        per_token: Bytes that each takes.
    """
    tokens, most = LEAST, SHARE * free / max(per_token, 1.0)
    while 2 * tokens <= min(most, MOST):
        tokens *= 2
    return tokens


class MicrobatchSize:
    """The padded tokens of one forward and backward, and of one forward where nothing is trained.

    With `auto` on a GPU they are `START` at first. The second microbatch of an optimizer step, for the first one makes
    the gradients, tells what a token takes; after that step, when the optimizer has its state, what is free tells how
    many there may be. That holds for the rest of the run, and for one that goes on from its checkpoint on the same
    cards; on others it is chosen anew. A step of one microbatch tells nothing, for it would gain nothing; nor does an
    optimizer that keeps no state.

    Args:
        option: `Updates.microbatch_tokens`.
        phases: Of the module; keeps the peak of memory that is forgotten here.
        memory_of: From a device to its memory; None where there is nothing to choose by.

    Attributes:
        chosen: What `auto` has chosen; None before.
    """

    def __init__(
        self,
        option: int | Literal["auto"],
        phases: Phases,
        memory_of: Callable[[torch.device], Memory | None] = memory_of,
    ) -> None:
        self.option = option
        self.phases = phases
        self.memory_of = memory_of
        self.chosen: int | None = None
        self._cards: list[str] = []  # that it was chosen for, of all processes
        self._per_token: float | None = None

    @property
    def tokens(self) -> int:
        """As many as it may be now."""
        return (self.chosen or START) if self.option == "auto" else self.option

    @contextmanager
    def measured(self, index: int, micro: Rollout, device: torch.device) -> Iterator[None]:
        """Around the forward and backward of a step's microbatch number `index`."""
        memory = self.memory_of(device) if self._undecided and index == 1 else None
        if memory is None:
            yield
            return
        self.phases.peak = max(self.phases.peak, memory.peak())
        memory.forget_peak()
        before = memory.allocated()
        yield
        tokens = micro.num_prompts * int(micro.lengths.sum(-1).max())
        self._per_token = (memory.peak() - before) / tokens

    def choose(
        self, trained: Sequence[nn.Parameter], optimizer: Optimizer, device: torch.device
    ) -> None:
        """After a step: choose, where one of its microbatches was measured. All processes come to the same.

        Args:
            trained: What had a gradient in the step; that will be held beside the activations again.
            optimizer: With its state of all of these, else it is too early.
            device: Whose memory it is.
        """
        memory = self.memory_of(device) if self._undecided else None
        if memory is None or self._per_token is None:
            return
        if not all(parameter in optimizer.state for parameter in trained):
            return
        # Gradients are as large as this process's parts of the parameters.
        own = (each.to_local() if isinstance(each, DTensor) else each for each in trained)
        free = memory.free() - sum(part.nbytes for part in own)
        self.chosen = min(gather_objects(fitting_tokens(free, self._per_token)))
        self._cards = self._all_cards(device)
        rank_zero_info(
            f"updates.microbatch_tokens: auto takes {self.chosen:,} padded tokens at a time from here on: one takes "
            f"{self._per_token / 2**20:.2f} MiB in an update, and {free / 2**30:.1f} GiB are free for them."
        )

    def begin(self, device: torch.device) -> None:
        """Before the first step: forget what was chosen on other cards. All processes must call it."""
        if self.option != "auto" or self.chosen is None or self._cards == self._all_cards(device):
            return
        rank_zero_info(
            f"updates.microbatch_tokens: auto chose {self.chosen:,} padded tokens on {', '.join(self._cards)}, and "
            "this run goes on with other devices: it chooses anew."
        )
        self.chosen = None

    def state_dict(self) -> dict[str, Any]:
        """What was chosen, and for which cards."""
        return {"chosen": self.chosen, "cards": self._cards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; an option that is a number holds all the same."""
        self.chosen, self._cards = state.get("chosen"), state.get("cards", [])

    def _all_cards(self, device: torch.device) -> list[str]:
        memory = self.memory_of(device)
        return sorted(gather_objects("no GPU" if memory is None else memory.card()))

    @property
    def _undecided(self) -> bool:
        return self.option == "auto" and self.chosen is None
