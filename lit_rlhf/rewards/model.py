"""Rewards by a trained reward model."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import Backbone, RewardSource, evaluating, in_step
from lit_rlhf.models.branched import pack
from lit_rlhf.models.specs import Attention, DTypeOption, Quantization
from lit_rlhf.options import check_option
from lit_rlhf.prompt_form import PromptForm, warn_of_prompts
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.retokenize import Retokenizer, TokenRows, same_ids
from lit_rlhf.rewards.trained import TrainedReward
from lit_rlhf.types import Completions, Scores


class _Place(NamedTuple):
    """Where the reward model lives; the backbone in a tuple, so that the policy's doesn't become a submodule."""

    backbone: tuple[Backbone]
    role: str
    mean: float
    std: float
    retokenizer: Retokenizer | None
    prompts: PromptForm | None


class ModelReward(Reward):
    """The score of a reward model that `RewardModelModule` trained, or of a sequence classifier with one label.

    It reads the policy's tokens where the tokenizers agree. Otherwise the completions are written as text and read with
    the reward model's own tokenizer, never as foreign ids. All samples of a prompt are scored in one row that holds the
    prompt once, rows of similar length together.

    A reward model that was trained as an adapter on the policy's base is put on that base, under its own role: then
    policy, reference and reward take the memory of one model.

    Args:
        path: An export (`lit-rlhf export`), a checkpoint (`.ckpt`) of `RewardModelModule`, or a classifier's directory
            or hub id.
        share_base: Put the adapter on the policy's base. None does so where it is possible; True raises where it isn't;
            False loads a model of its own.
        normalize: Subtract the mean of the scores on held-out data and divide by their deviation, as recorded in
            training. Fixed numbers; see `NormalizedReward` for running ones and for where this stands to the KL
            penalty.
        batch_tokens: Most tokens that are scored at a time, padding included; a single prompt with its samples may
            exceed it.
        dtype: Of the weights of a model of its own; default: that of the checkpoint's spec, float32 for others.
        quantization: The same for its linear layers.
        attention: Kernel of a model of its own.
        base: Base of an adapter, if it is no longer where the adapter says.
        conversation_column: For a model of its own: the column of the data set with the prompt's messages, which the
            reward model's chat template then renders. None gives it the prompt as the policy reads it: the same
            tokens where the tokenizers agree, else the same text.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ConfigurationError: A number out of its range.
    """

    backbone: Backbone

    def __init__(
        self,
        path: str,
        share_base: bool | None = None,
        normalize: bool = False,
        batch_tokens: int = 8192,
        dtype: DTypeOption | None = None,
        quantization: Quantization | None = None,
        attention: Attention = "sdpa",
        base: str | None = None,
        conversation_column: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        check_option(batch_tokens >= 1, self, "batch_tokens", batch_tokens, "at least 1")
        self.path = path
        self.share_base = share_base
        self.normalize = normalize
        self.batch_tokens = batch_tokens
        own: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "attention": attention}
        own["trust_remote_code"] = trust_remote_code
        self.options = {name: value for name, value in own.items() if value is not None}
        self.base = base
        self.conversation_column = conversation_column
        self._place: _Place | None = None

    def attach(self, backbone: Backbone) -> None:
        """Load the reward model, on the policy's base or by itself, and compare the tokenizers.

        Raises:
            ConfigurationError: There is no such model, `share_base` is True and it can't be, `normalize` and nothing to
                do it by, or the tokenizers differ in a way that text doesn't bridge.
            CheckpointError: Files are torn or incomplete.
        """
        if self._place is not None:
            return
        trained = TrainedReward.read(self.path, self.base)
        obstacle = trained.obstacle(backbone)
        if self.share_base and obstacle is not None:
            raise ConfigurationError(
                f"ModelReward.share_base is true, but {self.path!r} can't stand on the policy's base: {obstacle}. Set "
                "share_base: false."
            )
        mean, std = trained.moments() if self.normalize else (0.0, 1.0)
        if self.normalize and (mean, std) == (0.0, 1.0):
            raise ConfigurationError(
                f"ModelReward.normalize is true, and {self.path!r} records no mean and deviation of its scores: it was "
                "trained without validation, or elsewhere. Leave it out and use NormalizedReward around ModelReward."
            )
        column = self.conversation_column
        if self.share_base or (self.share_base is None and obstacle is None):
            if column is not None:
                raise ConfigurationError(
                    f"ModelReward.conversation_column={column!r} is for a reward model of its own: this one stands on "
                    "the policy's base and reads the policy's tokens. Leave it out, or set share_base: false."
                )
            role = backbone.free_role("reward")
            trained.add_to(backbone, role)
            self._place = _Place((backbone,), role, mean, std, None, trained.prompts())
            return
        own = self.backbone = trained.load(self.options).to(backbone.device)
        retokenizer = None
        if column is not None or not same_ids(backbone.tokenizer, own.tokenizer):
            retokenizer = Retokenizer(backbone.tokenizer, own.tokenizer, column)
        self._place = _Place((own,), "reward", mean, std, retokenizer, trained.prompts())

    def source(self) -> RewardSource | None:
        """Where the reward model lives, once attached."""
        place = self._place
        return None if place is None else RewardSource(place.backbone[0], place.role, place.role)

    def check_prompts(self, form: PromptForm) -> None:
        """Compare with those that the reward model was trained on, as it will read them."""
        place = self._place
        if place is None:
            return
        if place.retokenizer is not None and self.conversation_column is not None:
            systems = [] if form.system is None else [form.system]
            form = PromptForm.of_chats(place.backbone[0].tokenizer, systems)
        warn_of_prompts(f"The reward model {self.path!r}", place.prompts, form)

    def score(self, completions: Completions) -> Scores:
        """(N,) float32.

        Raises:
            ConfigurationError: Not attached; or a prompt with its completion is longer than the reward model's context.
            DataError: A completion without tokens.
        """
        if self._place is None:
            raise ConfigurationError(
                "ModelReward has no model yet: call attach(backbone) with the policy's backbone first."
            )
        (backbone,), role, mean, std, retokenizer, _ = self._place
        if retokenizer is not None:
            rows = retokenizer(completions)
        else:
            prompt_mask, mask = completions.prompt_mask.bool(), completions.response_mask.bool()
            rows = TokenRows(completions.prompt_ids, prompt_mask, completions.tokens, mask)
        scores = score_rows(backbone, rows, role, self.batch_tokens, self.path)
        return Scores((scores.flatten() - mean) / std)


@torch.no_grad()
def score_rows(
    backbone: Backbone, rows: TokenRows, role: str, batch_tokens: int, path: str
) -> Tensor:
    """Score the completions of prompts, all samples of a prompt in one row, rows of similar length together.

    Args:
        backbone: Of the reward model.
        rows: B prompts, and their N = B * K completions.
        role: The reward model's adapter and head.
        batch_tokens: Most tokens at a time, padding included; a single prompt with its samples may exceed it.
        path: The reward model's name in errors.

    Returns:
        (B, K) float32.

    Raises:
        ConfigurationError: A prompt with its completion is longer than the model's context.
        DataError: A completion without tokens.
    """
    prompt_lengths, lengths = _check_lengths(rows, backbone, path)
    count, samples = lengths.shape
    scores = torch.empty(count, samples, device=rows.tokens.device)
    totals = prompt_lengths + lengths.sum(-1)
    with evaluating(backbone):
        for part in in_step(backbone, list(_batches(totals, batch_tokens))):
            width, longest = int(prompt_lengths[part].max()), int(lengths[part].max())
            prompts = rows.prompt_ids[part, :width], rows.prompt_mask[part, :width]
            every = [x.view(count, samples, -1) for x in (rows.tokens, rows.mask)]
            tokens, taken = (x[part, :, :longest].flatten(0, 1) for x in every)
            batch = pack(*prompts, tokens, taken, backbone.pad_token_id)
            found = backbone(batch, num_branches=samples, role=role, scores=role).scores
            scores[part] = found.view(len(part), samples).float()
    return scores


def _check_lengths(rows: TokenRows, backbone: Backbone, path: str) -> tuple[Tensor, Tensor]:
    """(B,) and (B, K) tokens, which must not be none nor too many."""
    prompts, completions = rows.prompt_mask.sum(-1), rows.mask.sum(-1)
    if bool((completions == 0).any()):
        raise DataError(
            f"Completion {int(completions.argmin())} of the batch has no tokens, so there is nothing to score."
        )
    completions = completions.view(len(prompts), -1)
    refuse_too_long(int((prompts[:, None] + completions).max()), backbone.context_length, path)
    return prompts, completions


def refuse_too_long(longest: int, context: int | None, name: str) -> None:
    """Refuse rows of more tokens than a reward model reads.

    Raises:
        ConfigurationError: The longest has more.
    """
    if context is not None and longest > context:
        raise ConfigurationError(
            f"A prompt with its completion has {longest} tokens; the reward model {name!r} reads {context}. Shorten "
            "prompts (max_prompt_length of the data) or sampling.max_new_tokens."
        )


def _batches(totals: Tensor, budget: int) -> Iterator[Tensor]:
    """Indices of prompts of similar length, the longest of a batch times their number within the budget."""
    order = totals.argsort(descending=True, stable=True)
    lengths = totals[order].tolist()
    start = 0
    while start < len(lengths):
        size = max(budget // lengths[start], 1)
        yield order[start : start + size]
        start += size
