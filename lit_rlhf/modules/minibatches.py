"""From the rollouts of all processes to minibatches, from those to what a GPU has room for, and its forwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from torch.optim import Optimizer

from lit_rlhf.distributed import gather_objects, num_ranks, rank, stack_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, in_step
from lit_rlhf.models.branched import pack
from lit_rlhf.modules.phases import Phases
from lit_rlhf.types import BranchedBatch, BranchOutput, PromptBatch, Rollout, Stage, asked

START = 8192
"""Tokens of `auto` until it is chosen; on a CPU always."""
LEAST, MOST = 1024, 65536
"""What is chosen lies between; larger passes are no faster."""
SHARE = 0.6
"""Of the free memory; the rest is for rows that are longer than those measured, for holes, and for other phases."""


def rollout_batch(rollout: Rollout, pad_token_id: int) -> BranchedBatch:
    """Lay a rollout out as branched rows, each prompt with all of its samples."""
    prompts, completions = rollout.prompts, rollout.completions
    rows = prompts.ids, prompts.mask, completions.tokens, completions.mask
    return pack(*rows, pad_token_id, rollout.lengths)


def gather_rollout(rollout: Stage) -> Stage:
    """The rollouts of all processes, ordered so that prompt i of process r is row i * processes + r.

    Rollouts are small (a few numbers per token); with all of them on each process, whitening and minibatches are those
    of one process with the same global batch, and need no further collectives.
    """
    if num_ranks() == 1:
        return rollout
    count, samples = rollout.num_prompts, rollout.num_samples
    shape = torch.tensor([rollout.prompts.ids.shape[1], rollout.response_mask.shape[1]])
    width, length = stack_over_ranks(shape.to(rollout.response_mask.device)).amax(0).tolist()

    def gather(rows: Tensor) -> Tensor:  # (B, ...) to (B * processes, ...)
        ranks = stack_over_ranks(rows.to(torch.uint8) if rows.dtype == torch.bool else rows)
        return ranks.transpose(0, 1).flatten(0, 1).to(rows.dtype)

    def gather_samples(tensor: Tensor) -> Tensor:
        wide = pad(tensor, (0, length - tensor.shape[1])) if tensor.dim() == 2 else tensor
        return gather(wide.view(count, samples, *wide.shape[1:])).flatten(0, 1)

    return rollout.map(
        lambda tensor: gather(pad(tensor, (0, width - tensor.shape[1]))), gather_samples
    )


def join_rollouts(rollouts: Sequence[Stage]) -> Stage:
    """One rollout of prompts that were sampled from the same batch in several parts."""
    length = max(rollout.response_mask.shape[1] for rollout in rollouts)

    def join(*parts: Tensor) -> Tensor:
        wide = [pad(t, (0, length - t.shape[1])) if t.dim() == 2 else t for t in parts]
        return torch.cat(wide)

    return rollouts[0].map(lambda *parts: torch.cat(parts), join, *rollouts[1:])


def select_prompts(batch: PromptBatch, rows: slice) -> PromptBatch:
    """Some rows of a batch of prompts, with their columns."""
    part = PromptBatch(
        input_ids=batch["input_ids"][rows],
        branch_ids=batch["branch_ids"][rows],
        position_ids=batch["position_ids"][rows],
        index=batch["index"][rows],
        columns={name: values[rows] for name, values in batch.get("columns", {}).items()},
    )
    if "given" in batch:
        part["given"] = batch["given"][rows]
    return part


def minibatch_indices(
    num_prompts: int, num_minibatches: int, order: torch.Generator, ranks: int
) -> list[Tensor]:
    """A random partition of the prompts of all processes; each part divides evenly over processes.

    Raises:
        ConfigurationError: The prompts do not divide.
    """
    if num_prompts < num_minibatches or (ranks > 1 and num_prompts % (num_minibatches * ranks)):
        raise ConfigurationError(
            f"{num_prompts} prompts an iteration (all {ranks} processes together) can't be divided into "
            f"updates.minibatches={num_minibatches} for each process. Choose data.init_args.batch_size "
            "a multiple of updates.minibatches."
        )
    return list(torch.randperm(num_prompts, generator=order).tensor_split(num_minibatches))


def microbatch_indices(
    lengths: Tensor, share: Tensor, budget: int, at_least: int = 1
) -> list[Tensor]:
    """Divide a process's share of a minibatch by length, so that each part's padded size stays within a token budget.

    Args:
        lengths: (B,) tokens of all rows, on the CPU, for they decide how much is computed.
        share: (m,) indices of the rows to divide.
        budget: Padded tokens of one part; a single row may exceed it.
        at_least: The least number of parts: sharded strategies need the same number on every process.
    """
    ordered = share[lengths[share].argsort(descending=True, stable=True)]
    least = -(-int(lengths[share].sum()) // budget)  # in fewer parts one is too large
    count = min(max(at_least, least, 1), len(ordered))
    while count < len(ordered):
        parts = ordered.tensor_split(count)
        if all(len(part) * int(lengths[part[0]]) <= budget for part in parts):
            break
        count += 1
    return list(ordered.tensor_split(count))


def microbatches(minibatch: Stage, budget: int, rank: int, ranks: int) -> list[Stage]:
    """This process's share of a minibatch of all, in parts within a token budget; as many on each process."""
    lengths = minibatch.lengths.sum(-1)
    everything = torch.arange(minibatch.num_prompts)
    shares = [everything[each::ranks] for each in range(ranks)]
    most = max(len(microbatch_indices(lengths, share, budget)) for share in shares)
    mine = microbatch_indices(lengths, shares[rank], budget, at_least=most)
    return [minibatch.select(rows) for rows in mine]


class Memory:
    """Bytes of a GPU, as its allocator counts them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocated(self) -> int:
        """What tensors take now."""
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """The most that they took since `forget_peak`."""
        return torch.cuda.max_memory_allocated(self.device)

    def forget_peak(self) -> None:
        """Let the peak begin anew at what they take now."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def free(self) -> int:
        """What they could take more, with what the allocator holds and doesn't use."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - self.allocated()

    def card(self) -> str:
        """What device it is of, and how much there is in all."""
        found = torch.cuda.get_device_properties(self.device)
        return f"{found.name} of {found.total_memory / 2**30:.1f} GiB"


def memory_of(device: torch.device) -> Memory | None:
    """Of a GPU; None elsewhere."""
    return Memory(device) if device.type == "cuda" else None


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
        self._restored = False
        self._per_token: float | None = None

    @property
    def tokens(self) -> int:
        """As many as it may be now."""
        return (self.chosen or START) if self.option == "auto" else self.option

    def parts(self, minibatch: Stage, device: torch.device) -> Iterator[tuple[Stage, bool]]:
        """This process's share of a minibatch of all, in as many parts on each process; and whether each is the last.

        What a token takes is seen by the second part, from when it is given until the next one is asked for.
        """
        parts = microbatches(minibatch, self.tokens, rank(), num_ranks())
        for i, micro in enumerate(parts):
            memory = self.memory_of(device) if self._undecided and i == 1 else None
            if memory is not None:
                self.phases.peak = max(self.phases.peak, memory.peak())
                memory.forget_peak()
                before = memory.allocated()
            yield micro, i == len(parts) - 1
            if memory is not None:
                tokens = micro.num_prompts * int(micro.lengths.sum(-1).max())
                self._per_token = (memory.peak() - before) / tokens

    def choose(
        self, trained: Sequence[nn.Parameter], optimizer: Optimizer, device: torch.device
    ) -> None:
        """After a step: choose, where one of its microbatches was measured. All processes come to the same.

        Args:
            trained: What had a gradient before the step; that will be held beside the activations again.
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
        """Before training and evaluation: forget what a checkpoint's run chose on other cards. All must call it."""
        restored, self._restored = self._restored and self.option == "auto", False
        if not restored or self.chosen is None or self._cards == self._all_cards(device):
            return
        rank_zero_info(
            f"updates.microbatch_tokens: auto chose {self.chosen:,} padded tokens on "
            f"{', '.join(self._cards) or 'cards that the checkpoint, an older one, does not name'}, and "
            "this run goes on with other devices: it chooses anew."
        )
        self.chosen = None

    def state_dict(self) -> dict[str, Any]:
        """What was chosen, and for which cards."""
        return {"chosen": self.chosen, "cards": self._cards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it; an option that is a number holds all the same."""
        self.chosen, self._cards, self._restored = state.get("chosen"), state.get("cards", []), True

    def _all_cards(self, device: torch.device) -> list[str]:
        memory = self.memory_of(device)
        return sorted(gather_objects("no GPU" if memory is None else memory.card()))

    @property
    def _undecided(self) -> bool:
        return self.option == "auto" and self.chosen is None


def rollout_forward(
    model: Backbone, role: str | None, temperature: float, rollout: Rollout, **more: Any
) -> BranchOutput:
    """Log-probs of a rollout's responses, and what else is asked for.

    Args:
        model: Computes them.
        role: Whose adapter is on.
        temperature: Of the sampling.
        rollout: Its completions are the branches.
        more: As for `Backbone.forward`.
    """
    batch, count = rollout_batch(rollout, model.pad_token_id), rollout.num_samples
    out: BranchOutput = model(
        batch, num_branches=count, role=role, logprobs=True, temperature=temperature, **more
    )
    return out


def rollout_logprobs(
    model: Backbone, role: str | None, temperature: float, rollout: Rollout, budget: int
) -> Tensor:
    """(N, T): log-probs of a rollout's tokens without gradient; `budget` as for `by_parts`."""
    forward = partial(rollout_forward, model, role, temperature)
    return by_parts(rollout, model, budget, lambda part: asked(forward(part).logprobs))


@torch.no_grad()
def by_parts(
    rollout: Rollout, weights: nn.Module, budget: int, compute: Callable[[Rollout], Tensor]
) -> Tensor:
    """(N, T), computed of parts of similar length within a budget of tokens, without gradient; 0 where masked.

    Args:
        rollout: This process's; others may have other numbers of parts.
        weights: Through which the parts pass.
        budget: Padded tokens of one part.
        compute: From a part to (n, t).
    """
    device, shape = rollout.response_mask.device, rollout.response_mask.shape
    samples = torch.arange(rollout.num_samples, device=device)
    result = torch.zeros(shape, device=device)
    lengths = rollout.lengths.sum(-1)
    shares = microbatch_indices(lengths, torch.arange(rollout.num_prompts), budget)
    for share in in_step(weights, shares):
        chosen = share.to(device, non_blocking=True)
        found = compute(rollout.select(share))
        # Never less than float32, whatever autocast gives; float64 stays.
        result = result.to(torch.promote_types(found.dtype, result.dtype))
        rows = (chosen[:, None] * rollout.num_samples + samples).flatten()
        result[rows, : found.shape[1]] = found.to(result.dtype)
    return result
