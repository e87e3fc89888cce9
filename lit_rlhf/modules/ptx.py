"""A second stream beside the prompts: text whose gradient is added to that of each step, and PPO with one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.distributed import num_ranks, stack_over_ranks, sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.models.branched import select_rows
from lit_rlhf.modules.means import Means
from lit_rlhf.modules.minibatches import microbatch_indices
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.modules.ppo import PPOPolicyModule
from lit_rlhf.modules.steps import gradient_sync
from lit_rlhf.objectives import TokenMean
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.types import BranchedBatch, EvaluatedRollout, PromptBatch, Sample, asked


def divided_text(policy: PolicyModule, batch: PromptBatch) -> list[BranchedBatch]:
    """The text of a batch, a part for each minibatch of an epoch.

    Args:
        policy: Whose minibatches they are.
        batch: From `PromptTextDataModule`.

    Raises:
        ConfigurationError: The batch has no text, or less than a row for each minibatch.
    """
    text = batch.get("text")
    if text is None:
        raise ConfigurationError(
            f"{type(policy).__name__} trains on prompts and text, and the batch has prompts alone. "
            "Use PromptTextDataModule."
        )
    count, wanted = len(text["input_ids"]), policy.updates.minibatches
    if count < wanted:
        raise ConfigurationError(
            f"{count} row(s) of text per process can't be divided into updates.minibatches={wanted}. Raise the "
            "batch_size of the data module's `text`."
        )
    rows = torch.arange(count, device=text["input_ids"].device)
    return [_rows(text, part) for part in rows.tensor_split(wanted)]


def add_text_gradient(
    policy: PolicyModule,
    text: BranchedBatch,
    loss_of: Callable[[BranchedBatch], tuple[Tensor, Tensor]],
    *,
    coef: float,
    name: str,
) -> None:
    """Add the gradient of a loss of text, its mean over the completions' tokens of all processes.

    Args:
        policy: Whose next `update` takes the step.
        text: This process's rows.
        loss_of: From some rows to the loss of each token, (B, T), and its mask.
        coef: Weight of the loss.
        name: Under which the mean is logged.
    """
    reduction = TokenMean()
    total = sum_over_ranks(reduction.denominator(text["branch_ids"] > 0)).clamp_min(1)
    means = Means()
    for rows in _microbatches(text, policy.microbatch_size.tokens):
        with gradient_sync(policy.trainer, enabled=False):  # the rollout's last microbatch will
            loss, mask = loss_of(_rows(text, rows))
            share = reduction.numerator(loss, mask) / total
            policy.manual_backward(coef * share * num_ranks())
        means.add(name, loss, mask)
    policy.means.join(means, policy.device)


def _microbatches(text: BranchedBatch, budget: int) -> list[Tensor]:
    lengths = (text["branch_ids"] >= 0).sum(-1)
    everything = torch.arange(len(lengths), device=lengths.device)
    count = torch.tensor(
        len(microbatch_indices(lengths, everything, budget)), device=lengths.device
    )
    count = stack_over_ranks(count).amax()  # sharded strategies need the same number on all
    return microbatch_indices(lengths, everything, budget, at_least=int(count))


def _rows(batch: BranchedBatch, rows: Tensor) -> BranchedBatch:
    """Some rows, as wide as the longest of them."""
    return select_rows(batch, rows, int((batch["branch_ids"][rows] >= 0).sum(-1).max()))


class PPOPtxPolicyModule(PPOPolicyModule):
    r"""PPO-ptx (InstructGPT, arXiv:2203.02155): $J_{PPO}(\pi) + \gamma_{ptx}\,E_{y\sim D}[\log\pi(y)]$.

    Batches come from `PromptTextDataModule`: prompts, and with them text from D (pretraining text or demonstrations).
    Each optimizer step adds the gradient of `ptx_coef` times the mean negative log-likelihood of the text's completion
    tokens, at temperature 1 and over all processes; the text is divided over an iteration's minibatches and read again
    in each epoch. Logs `loss/ptx_avg`. The optimum is no longer that of the KL-penalised reward.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        ptx_coef: $\gamma_{ptx}$, above 0, in units of (whitened) advantage per nat; the paper's is 27.8. Larger keeps
            more of the text and learns less of the reward.
        **kwargs: As for `PPOPolicyModule`.

    Raises:
        ConfigurationError: The batches have no text, or less than a row for each minibatch.
    """

    def __init__(
        self, backbone: ModelSpec, reward: Reward, *, ptx_coef: float = 27.8, **kwargs: Any
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.ptx_coef = ptx_coef
        what = "above 0; without text use PPOPolicyModule"
        check_option(ptx_coef > 0, self, "ptx_coef", ptx_coef, what)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, list[Sample]]:
        """One iteration on a batch of prompts and text."""
        divided_text(self, batch)  # or say what is wrong with it, before the rollout
        return super().training_step(batch, batch_idx)

    def update(self, minibatch: EvaluatedRollout, batch: PromptBatch, step: int) -> float:
        """The text's gradient, then that of PPO, in one step; each minibatch of an epoch has its part of the text."""
        parts = divided_text(self, batch)
        text, coef = parts[step % len(parts)], self.ptx_coef
        add_text_gradient(self, text, self.text_loss, coef=coef, name="loss/ptx_avg")
        return super().update(minibatch, batch, step)

    def text_loss(self, text: BranchedBatch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each token of the completions, (B, T), and their mask."""
        out = self.backbone(text, num_branches=1, role="policy", logprobs=True)
        return -asked(out.logprobs), out.mask
