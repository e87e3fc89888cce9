"""The records that flow through the library (layer L0). Axes: B prompts, K branches of each, N = B * K sequences, T tokens.

Loaders emit plain dictionaries (Lightning moves those to devices); inside modules the frozen dataclasses below carry
the data. Sequences of one prompt are neighbours: sequence n = prompt * K + branch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

from torch import Tensor


class BranchedBatch(TypedDict):
    """Rows of `prompt ++ branch_1 ++ ... ++ branch_K`, right-padded.

    The one layout of every training batch: pairs, ranked lists, unpaired examples, demonstrations, groups and rollouts
    differ in K alone.
    """

    input_ids: Tensor  # (B, L) int64
    branch_ids: Tensor  # (B, L) int64: 0 = prompt, 1..K = which branch, -1 = padding
    position_ids: Tensor  # (B, L) int64: each branch goes on from its prompt's length
    attention_mask: NotRequired[Any]  # no mask: it fails when an ordinary model looks at it


class DemonstrationBatch(BranchedBatch):
    """K = 1: a prompt and the answer to imitate."""

    index: Tensor  # (B,) int64: position in the data set


class PreferenceBatch(BranchedBatch):
    """K = 2: branch 1 was chosen, branch 2 rejected."""

    index: Tensor  # (B,) int64
    margin: NotRequired[Tensor]  # (B,) float32: by how much, in units of reward
    p_chosen: NotRequired[
        Tensor
    ]  # (B,) float32 in [0, 1]: probability that a rater prefers branch 1
    ref_logprobs: NotRequired[
        Tensor
    ]  # (B, K) float32: log-probs of the branches under the reference, precomputed


class RankedBatch(BranchedBatch):
    """K >= 2 completions of a prompt with scores (higher is better); rows with fewer branches are masked."""

    index: Tensor  # (B,) int64
    score: Tensor  # (B, K) float32
    branch_mask: Tensor  # (B, K) bool: whether the branch exists
    ref_logprobs: NotRequired[Tensor]  # (B, K) float32


class UnpairedBatch(BranchedBatch):
    """K = 1: a completion and a label: bool for desirable or not, float for a scalar score."""

    index: Tensor  # (B,) int64
    label: NotRequired[Tensor]  # (B,) bool
    score: NotRequired[Tensor]  # (B,) float32
    ref_logprobs: NotRequired[Tensor]  # (B, K) float32


class ProcessBatch(BranchedBatch):
    """K = 1: a solution in S steps, each labelled."""

    index: Tensor  # (B,) int64
    step_end: Tensor  # (B, S) int64: place of each step's last token within the completion, 0 where there is no step
    step_label: Tensor  # (B, S) float32 in [0, 1]: whether, or how probably, the step is right
    step_mask: Tensor  # (B, S) bool: whether the step exists


class PromptBatch(BranchedBatch):
    """K = 0: prompts to roll out from."""

    index: Tensor  # (B,) int64
    columns: dict[str, list[Any]]  # further columns of the data set, for rewards that need them
    text: NotRequired[DemonstrationBatch]  # what to go on imitating, of another number of rows


def num_branches(batch: BranchedBatch) -> int:
    """K of a batch: the width of its per-branch columns where it has some, else the highest branch id."""
    for name in ("branch_mask", "score"):
        column = batch.get(name)
        if isinstance(column, Tensor) and column.dim() == 2:
            return column.shape[1]
    return int(batch["branch_ids"].max())


@dataclass(frozen=True)
class BranchOutput:
    """What a backbone says of the branches of a batch; N = B * K, T = longest branch."""

    mask: Tensor  # (N, T) bool: tokens that exist
    logprobs: Tensor | None = (
        None  # (N, T) float32: log pi(token | what came before), 0 where masked
    )
    entropy: Tensor | None = None  # (N, T) float32, nats
    values: Tensor | None = None  # (N, T) float32: scalar head at the state before each token
    scores: Tensor | None = (
        None  # (N,) float32: scalar head at the last token; of several heads (N, heads)
    )


@dataclass(frozen=True)
class SequenceStats:
    """What preference losses see of the branches of a batch."""

    logprobs: Tensor  # (B, K) float32: sum over the branch's tokens
    lengths: Tensor  # (B, K) int64: number of tokens, EOS included
    token_logprobs: Tensor | None = None  # (B, K, T)
    token_mask: Tensor | None = None  # (B, K, T) bool


@dataclass(frozen=True)
class LossOutput:
    """An unreduced loss and unreduced metrics, keyed by the name they are logged under."""

    loss: Tensor  # (N, T) for token losses, (B,) or (B, K) for losses of examples or branches
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """What a rollout engine returns."""

    tokens: Tensor  # (N, T) int64, padded after the end
    mask: Tensor  # (N, T) bool: 1 = a generated token that counts, EOS included
    finished: Tensor  # (N,) bool: ended by EOS or a stop token, not by the length limit
    logprobs: Tensor | None = None  # (N, T) float32 of the distribution sampled from
    values: Tensor | None = (
        None  # (N, T) float32 of the state before each token, where an engine was asked and could
    )


@dataclass(frozen=True)
class Completions:
    """What a reward sees: tokens, texts and the data set's further columns, one entry per sequence."""

    prompt_ids: Tensor  # (B, P) int64, right-padded
    prompt_mask: Tensor  # (B, P) bool
    tokens: Tensor  # (N, T) int64
    response_mask: Tensor  # (N, T) bool
    finished: Tensor  # (N,) bool
    prompts: list[str]  # N
    responses: list[str]  # N, without special tokens
    columns: Mapping[str, list[Any]] = field(default_factory=dict)  # each of N entries


@dataclass(frozen=True)
class Rollout:
    """One iteration's samples; each stage fills in further fields with `dataclasses.replace`."""

    prompt_ids: Tensor  # (B, P) int64, right-padded
    prompt_mask: Tensor  # (B, P) bool
    tokens: Tensor  # (N, T) int64
    response_mask: Tensor  # (N, T) bool
    finished: Tensor  # (N,) bool
    scores: Tensor  # (N,) float32
    old_logprobs: (
        Tensor  # (N, T) float32, of the distribution sampled from: the denominator of ratios
    )
    engine_logprobs: Tensor | None = None  # (N, T) float32, as the engine reported them
    ref_logprobs: Tensor | None = None  # (N, T) float32
    values: Tensor | None = None  # (N, T) float32
    rewards: Tensor | None = None  # (N, T) float32
    advantages: Tensor | None = None  # (N, T) float32
    returns: Tensor | None = None  # (N, T) float32
    wins: Tensor | None = (
        None  # (N,) float32 in [0, 1]: how far the sample is preferred to the other one of its pair
    )
    baselines: Tensor | None = None  # (N,) float32: what a method of its own subtracts from returns

    @property
    def num_prompts(self) -> int:
        """B."""
        return self.prompt_ids.shape[0]

    @property
    def num_samples(self) -> int:
        """Sequences per prompt, K."""
        return self.tokens.shape[0] // self.prompt_ids.shape[0]

    def select(self, prompts: Tensor) -> "Rollout":
        """The part of the rollout that belongs to some prompts, trimmed to its longest prompt and response.

        Args:
            prompts: (m,) int64 indices of prompts; all samples of a prompt stay together.
        """
        rows = (
            prompts[:, None] * self.num_samples + prompts.new_tensor(range(self.num_samples))
        ).flatten()
        width = max(int(self.prompt_mask[prompts].sum(-1).max()), 1)
        length = max(int(self.response_mask[rows].sum(-1).max()), 1)
        chosen: dict[str, Tensor] = {}
        for name, value in self._tensors():
            if name.startswith("prompt"):
                chosen[name] = value[prompts, :width]
            else:
                chosen[name] = value[rows, :length] if value.dim() == 2 else value[rows]
        return replace(self, **chosen)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(self).items():
            if value is not None:
                yield name, value
