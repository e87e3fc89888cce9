"""The records that flow through the library (layer L0).

Axes: B prompts, K branches of each, N = B * K sequences, T tokens.

Loaders emit plain dictionaries (Lightning moves those to devices); inside modules the frozen dataclasses below carry
the data. Sequences of one prompt are neighbours: sequence n = prompt * K + branch.

A rollout goes through stages, each a type with the fields of the one before and more: `Rollout` (sampled),
`ScoredRollout`, `EvaluatedRollout`, `EstimatedRollout`. A field that a stage has is never None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, NotRequired, Self, TypeAlias, TypedDict, TypeVar

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning_utilities import Convertible

Text: TypeAlias = str | Sequence[Mapping[str, Any]]
"""Plain text, or the turns of a conversation: each a `role`, a `content` and whatever else a chat template reads."""


ATTRIBUTE, GATE = "attribute_", "gate_"
"""How the names of a reward model's heads begin that judge one attribute each, and of those that weigh them: the head
`gate_3`, read where the prompt ends, weighs `attribute_3`, read where the answer does."""


class BranchedBatch(TypedDict):
    """Rows of `prompt ++ branch_1 ++ ... ++ branch_K`, right-padded.

    The one layout of every training batch: pairs, ranked lists, unpaired examples, demonstrations, groups and rollouts
    differ in K alone.
    """

    input_ids: Tensor  # (B, L) int64
    branch_ids: Tensor  # (B, L) int64: 0 = prompt, 1..K = which branch, -1 = padding
    position_ids: Tensor  # (B, L) int64: each branch goes on from its prompt's length
    lengths: NotRequired[Tensor]  # (B, 1 + K) int64 on the CPU, where known: tokens of the parts
    attention_mask: NotRequired[Any]  # no mask: it fails when an ordinary model looks at it


class DemonstrationBatch(BranchedBatch):
    """K = 1: a prompt and the answer to imitate."""

    index: Tensor  # (B,) int64: position in the data set


class PreferenceBatch(BranchedBatch):
    """K = 2: branch 1 was chosen, branch 2 rejected."""

    index: Tensor  # (B,) int64
    margin: NotRequired[Tensor]  # (B,) float32: by how much, in units of reward
    p_chosen: NotRequired[Tensor]  # (B,) float32 in [0, 1]: that a rater prefers branch 1
    ref_logprobs: NotRequired[Tensor]  # (B, K) float32: under the reference, precomputed
    attributes: NotRequired[Tensor]  # (B, K, A) float32: ratings of each completion, by attribute
    subset: NotRequired[list[str]]  # B: which part of the data each row belongs to, "" for none


class RankedBatch(BranchedBatch):
    """K >= 2 completions of a prompt with scores (higher is better); rows with fewer branches are masked."""

    index: Tensor  # (B,) int64
    score: Tensor  # (B, K) float32
    branch_mask: Tensor  # (B, K) bool: whether the branch exists
    ref_logprobs: NotRequired[Tensor]  # (B, K) float32
    subset: NotRequired[list[str]]  # B


class UnpairedBatch(BranchedBatch):
    """K = 1: a completion and a label: bool for desirable or not, float for a scalar score."""

    index: Tensor  # (B,) int64
    label: NotRequired[Tensor]  # (B,) bool
    score: NotRequired[Tensor]  # (B,) float32
    ref_logprobs: NotRequired[Tensor]  # (B, K) float32
    attributes: NotRequired[Tensor]  # (B, K, A) float32: ratings of each completion, by attribute
    subset: NotRequired[list[str]]  # B


class ProcessBatch(BranchedBatch):
    """K = 1: a solution in S steps, each labelled."""

    index: Tensor  # (B,) int64
    step_end: Tensor  # (B, S) int64: place of each step's last token within the completion, 0 where there is no step
    step_label: Tensor  # (B, S) float32 in [0, 1]: whether, or how probably, the step is right
    step_mask: Tensor  # (B, S) bool: whether the step exists
    subset: NotRequired[list[str]]  # B


class PromptBatch(BranchedBatch):
    """K = 0: prompts to roll out from."""

    index: Tensor  # (B,) int64
    columns: dict[str, list[Any]]  # further columns of the data set, for rewards that need them
    given: NotRequired[list[Text]]  # the prompts as the data set has them: texts, or messages
    text: NotRequired[DemonstrationBatch]  # what to go on imitating, of another number of rows


def num_branches(batch: BranchedBatch) -> int:
    """K of a batch: the width of its per-branch columns where it has some, else the highest branch id."""
    for name in ("branch_mask", "score"):
        column = batch.get(name)
        if isinstance(column, Tensor) and column.dim() == 2:
            return column.shape[1]
    return int(batch["branch_ids"].max())


@dataclass(frozen=True)
class BranchOutput(Convertible):
    """What a backbone says of the branches of a batch; N = B * K, T = longest branch."""

    mask: Tensor  # (N, T) bool: tokens that exist
    logprobs: Tensor | None = None  # (N, T) float32: log pi(token | before), 0 where masked
    entropy: Tensor | None = None  # (N, T) float32, nats
    collision: Tensor | None = None  # (N, T) float32: log sum_v pi(v)^2 of the next token
    values: Tensor | None = None  # (N, T) float32: scalar head at the state before each token
    scores: Tensor | None = None  # (N,) float32: head at the last token; of several (N, heads)
    divergence: Tensor | None = None  # (N, T) float32, nats: from another model's distributions
    log_ratio: Tensor | None = None  # (N, T) float32: log pi/q of the token, q the other model's
    hidden: Tensor | None = None  # (n, h): the states before the n tokens that exist


@dataclass(frozen=True)
class SequenceStats(Convertible):
    """What preference losses see of the branches of a batch."""

    logprobs: Tensor
    """(B, K) float32: sum over the branch's tokens."""
    lengths: Tensor
    """(B, K) int64: number of tokens, EOS included."""
    token_logprobs: Tensor | None = None
    """(B, K, T)."""
    token_mask: Tensor | None = None
    """(B, K, T) bool."""


@dataclass(frozen=True)
class LossOutput(Convertible):
    """An unreduced loss and unreduced metrics, keyed by the name they are logged under."""

    loss: Tensor  # (N, T) for token losses, (B,) for losses of rows
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    logprobs: Tensor | None = None
    """(N, T) of the current policy, where a loss of a rollout has them: what `target_kl` then looks at for free."""

    @classmethod
    def of(cls, given: object, rows: Sequence[int] | None, owner: object) -> "LossOutput":
        """What a loss gave, held to what its module reads; metrics that are plain numbers become tensors.

        Args:
            given: By a loss, which may be one's own.
            rows: The shape that its loss must have. None: one axis of any length.
            owner: The loss or the module, named in errors.

        Raises:
            ConfigurationError: It is no `LossOutput`, or its loss is of another shape.
        """
        name = type(owner).__name__
        if not isinstance(given, LossOutput):
            raise ConfigurationError(
                f"The loss of {name} gave a {type(given).__name__}: give LossOutput(loss) of lit_rlhf.types, with the "
                "loss unreduced, and metrics where there are any."
            )
        loss: object = given.loss
        shape = tuple(getattr(loss, "shape", ()))
        fits = len(shape) == 1 if rows is None else shape == tuple(rows)
        if not isinstance(loss, Tensor) or not fits:
            wanted = "one axis" if rows is None else f"the shape {tuple(rows)}"
            raise ConfigurationError(
                f"The loss of {name} gave a {type(loss).__name__} of the shape {shape}: it must be a tensor of "
                f"{wanted}, unreduced, a number for each row or token. The module takes the mean."
            )
        told: Mapping[str, object] = given.metrics
        metrics = {
            metric: value if isinstance(value, Tensor) else torch.tensor(value, device=loss.device)
            for metric, value in told.items()
        }
        return replace(given, metrics=metrics)


def asked(value: Tensor | None) -> Tensor:
    """What was asked of a backbone, which gives nothing that wasn't.

    Raises:
        ValueError: It wasn't asked for.
    """
    if value is None:
        said = "The backbone was not asked for this: see the arguments of Backbone.forward."
        raise ValueError(said)
    return value


@dataclass(frozen=True)
class Prompts:
    """One row per prompt."""

    ids: Tensor  # (B, P) int64, right-padded
    mask: Tensor  # (B, P) bool

    @classmethod
    def of(cls, batch: PromptBatch) -> Self:
        """Those of a batch."""
        return cls(batch["input_ids"], batch["branch_ids"] == 0)


@dataclass(frozen=True)
class Generation:
    """What a rollout engine returns: one row per sample."""

    tokens: Tensor  # (N, T) int64, padded after the end
    mask: Tensor  # (N, T) bool: 1 = a generated token that counts, EOS included
    finished: Tensor  # (N,) bool: ended by EOS or a stop token, not by the length limit
    logprobs: Tensor | None = None  # (N, T) float32 of the distribution sampled from
    values: Tensor | None = None
    """(N, T) float32 of the state before each token, where an engine was asked and could."""
    versions: Tensor | None = None
    """(N, T) int64: the iteration whose weights drew each token, of engines that may be behind."""


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
    given: list[Text] | None = None
    """N prompts as the data set has them: texts, or messages where `prompts` has what a template made of them."""

    def samples(self, scores: "Scores", iteration: int) -> "list[Sample]":
        """The completions for people to read; nan for those that couldn't be scored, no score where nothing scores."""
        known = scores.total.masked_fill(scores.left_out, math.nan)
        columns = (self.prompts, self.responses, known.tolist(), self.finished.tolist())
        samples = [
            Sample(iteration=iteration, prompt=p, response=r, score=score, finished=ended)
            for p, r, score, ended in zip(*columns, strict=True)
        ]
        for sample in samples if not scores.given else ():
            del sample["score"]
        return samples


@dataclass(frozen=True)
class Scores:
    """What a reward says of completions."""

    total: Tensor  # (N,) float32, higher is better
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """(N,) each: what the total is made of, or what watches beside it, by name; for the logs."""
    failed: Tensor | None = None
    """(N,) bool: completions that couldn't be scored and are to be left out; their total is a mean of others."""
    given: bool = True
    """Whether anything scored; where nothing does, the total is 0 for all, and is not shown."""

    @property
    def left_out(self) -> Tensor:
        """`failed`; none of them where nothing is said."""
        if self.failed is not None:
            return self.failed
        return torch.zeros_like(self.total, dtype=torch.bool)


class Sample(TypedDict):
    """A completion for people to read."""

    iteration: int  # iterations done when it was drawn
    prompt: str
    response: str
    score: NotRequired[float]  # missing where nothing scores
    finished: bool


Change = Callable[..., Tensor]
"""A tensor from the tensors that stand at one place in one or several records."""
Stage = TypeVar("Stage", bound="Rollout")


def change_tensors(change: Change, *records: Any) -> Any:
    """The first of several records of one kind, with each tensor replaced by `change` of those at its place in all."""
    first = records[0]
    if isinstance(first, Tensor):
        return change(*records)
    if isinstance(first, Mapping):
        return {key: change_tensors(change, *(record[key] for record in records)) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        names = [item.name for item in fields(first)]
        inner = {
            name: change_tensors(change, *(getattr(record, name) for record in records))
            for name in names
            if all(getattr(record, name) is not None for record in records)
        }
        return type(first)(**inner)  # what one of them lacks has None as its default
    return first


@dataclass(frozen=True)
class Rollout:
    """One iteration's samples as they were drawn: the first stage.

    Its `Prompts` have a row for each prompt; all other tensors, at this stage and later ones, one for each sample. A
    second axis is that of tokens.
    """

    prompts: Prompts
    completions: Generation

    @property
    def response_mask(self) -> Tensor:
        """(N, T) bool: 1 = a generated token that counts."""
        return self.completions.mask

    @cached_property
    def lengths(self) -> Tensor:
        """(B, 1 + K) int64 on the CPU: tokens of each prompt and of its samples; waits for a device the first time."""
        responses = self.response_mask.sum(-1).view(self.num_prompts, -1)
        return torch.cat([self.prompts.mask.sum(-1, keepdim=True), responses], dim=1).cpu()

    @property
    def num_prompts(self) -> int:
        """B."""
        return self.prompts.ids.shape[0]

    @property
    def num_samples(self) -> int:
        """Sequences per prompt, K."""
        return self.completions.tokens.shape[0] // self.num_prompts

    def to_stage(self, stage: type[Stage], **new: Any) -> Stage:
        """The rollout at another stage.

        Args:
            stage: Its type.
            new: The fields that this stage lacks, or has otherwise.
        """
        names = [item.name for item in fields(stage) if hasattr(self, item.name)]
        return stage(**({name: getattr(self, name) for name in names} | new))

    @classmethod
    def of(cls, rollout: "Rollout") -> Self:
        """A rollout that must be at this stage or a later one.

        Raises:
            TypeError: It is at an earlier one: the method that makes this stage was overridden by one that doesn't.
        """
        if not isinstance(rollout, cls):
            raise TypeError(
                f"A {cls.__name__} ({', '.join(item.name for item in fields(cls))}) is wanted here, and this is a "
                f"{type(rollout).__name__}: collect, evaluate or estimate must return the stage that loss reads."
            )
        return rollout

    def map(self, prompts: Change, samples: Change, *others: Self) -> Self:
        """Change all tensors: this is the one place that knows which axis is whose.

        Args:
            prompts: From the tensors of prompts, (B, P) each: this rollout's and those of `others`.
            samples: The same of samples, (N,) or (N, T).
            others: Rollouts of the same stage.
        """
        changed = {}
        for item in fields(self):
            values = [getattr(each, item.name) for each in (self, *others)]
            change = prompts if isinstance(values[0], Prompts) else samples
            changed[item.name] = change_tensors(change, *values)
        return replace(self, **changed)

    def select(self, prompts: Tensor) -> Self:
        """The part of the rollout that belongs to some prompts, trimmed to its longest prompt and response.

        Args:
            prompts: (m,) int64 indices of prompts; all samples of a prompt stay together. On the CPU they cost no wait.
        """
        lengths, device = self.lengths[prompts.cpu()], self.response_mask.device
        width, length = (max(int(part.max()), 1) for part in (lengths[:, 0], lengths[:, 1:]))
        chosen = prompts.to(device, non_blocking=True)
        samples = torch.arange(self.num_samples, device=device)
        rows = (chosen[:, None] * self.num_samples + samples).flatten()
        part = self.map(
            lambda tensor: tensor[chosen, :width],
            lambda tensor: tensor[rows, :length] if tensor.dim() == 2 else tensor[rows],
        )
        vars(part)["lengths"] = lengths  # known already, so that it costs no wait
        return part


@dataclass(frozen=True)
class ScoredRollout(Rollout):
    """Samples and what the reward says of them."""

    scores: Scores

    def leave_out(self, failed: Tensor, *, pairs: bool = False) -> Self:
        """The rollout without the tokens of some samples: nothing of them counts, as if they had none.

        Args:
            failed: (N,) bool.
            pairs: Neighbours are compared: where one is left out, so is the other, for nobody knows which is better.
        """
        if pairs:
            failed = failed.view(-1, 2).any(-1).repeat_interleave(2)
        mask = self.response_mask & ~failed[:, None]
        completions = replace(self.completions, mask=mask)
        return replace(self, completions=completions, scores=replace(self.scores, failed=failed))


@dataclass(frozen=True)
class EvaluatedRollout(ScoredRollout):
    """Scored samples and their log-probs."""

    old_logprobs: Tensor  # (N, T) of the distribution sampled from: the denominator of ratios
    ref_logprobs: Tensor  # (N, T) under the reference

    def with_advantages(self, advantages: Tensor) -> "EstimatedRollout":
        """The next stage: what policy gradients weigh each token by.

        Args:
            advantages: (N, T), 0 where masked.
        """
        return self.to_stage(EstimatedRollout, advantages=advantages)


@dataclass(frozen=True)
class EstimatedRollout(EvaluatedRollout):
    """What a policy gradient is taken of. Advantages are constants: a gradient that they have is cut off.

    Raises:
        ConfigurationError: Advantages that are no tensor, or of another shape than (N, T).
    """

    advantages: Tensor  # (N, T)

    def __post_init__(self) -> None:
        given: object = self.advantages
        wanted, shape = self.response_mask.shape, getattr(given, "shape", None)
        if not isinstance(given, Tensor) or shape != wanted:
            kind = type(given).__name__
            raise ConfigurationError(
                f"Advantages must be a tensor of {tuple(wanted)}, a number for each token of each sample, not "
                f"{kind if shape is None else f'a {kind} of {tuple(shape)}'}. "
                "spread_over_tokens(values, rollout.response_mask) makes one of a number for each sample."
            )
        object.__setattr__(self, "advantages", given.detach())
