"""PPO with a second stream of text, which the policy must not forget."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.means import Means
from lit_rlhf.modules.ppo import PPOPolicyModule
from lit_rlhf.modules.rollouts import microbatch_indices
from lit_rlhf.objectives import TokenMean
from lit_rlhf.rewards import Reward
from lit_rlhf.types import BranchedBatch, PromptBatch, Rollout


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
        self.check(
            "ptx_coef", lambda number: number > 0, "above 0; without text use PPOPolicyModule"
        )
        self._text: list[BranchedBatch] = []
        self._part = 0

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration on a batch of prompts and text."""
        self._text = self._divide(batch)
        super().training_step(batch, batch_idx)

    def schedule(self, rollout: Rollout) -> Iterator[Rollout]:
        """The minibatches, each with its part of the text."""
        for step, minibatch in enumerate(super().schedule(rollout)):
            self._part = step % self.num_minibatches
            yield minibatch

    def update(self, minibatch: Rollout) -> float:
        """The text's gradient, then that of PPO, in one step."""
        self._add_text_gradient(self._text[self._part])
        return super().update(minibatch)

    def text_loss(self, text: BranchedBatch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each token of the completions, (B, T), and their mask."""
        out = self.backbone(text, num_branches=1, role="policy", logprobs=True)
        assert out.logprobs is not None
        return -out.logprobs, out.mask

    def _add_text_gradient(self, text: BranchedBatch) -> None:
        reduction = TokenMean()
        total = self.sum_over_ranks(reduction.denominator(text["branch_ids"] > 0)).clamp_min(1)
        means = Means()
        for rows in self._text_microbatches(text):
            with self._gradient_sync(enabled=False):  # the rollout's last microbatch will
                loss, mask = self.text_loss(_rows(text, rows))
                share = reduction.numerator(loss, mask) / total
                self.manual_backward(self.ptx_coef * share * self._world_size)
            means.add("loss/ptx_avg", loss, mask)
        self._count_means(means)

    def _text_microbatches(self, text: BranchedBatch) -> list[Tensor]:
        lengths = (text["branch_ids"] >= 0).sum(-1)
        everything = torch.arange(len(lengths), device=lengths.device)
        count = torch.tensor(
            len(microbatch_indices(lengths, everything, self.microbatch_tokens)),
            device=lengths.device,
        )
        if self._world_size > 1:  # sharded strategies need the same number on every process
            count = self._gather(count).amax()
        return microbatch_indices(lengths, everything, self.microbatch_tokens, at_least=int(count))

    def _divide(self, batch: PromptBatch) -> list[BranchedBatch]:
        text = batch.get("text")
        if text is None:
            raise ConfigurationError(
                "PPOPtxPolicyModule trains on prompts and text, and the batch has prompts alone. "
                "Use PromptTextDataModule."
            )
        count = len(text["input_ids"])
        if count < self.num_minibatches:
            raise ConfigurationError(
                f"{count} row(s) of text per process can't be divided into "
                f"num_minibatches={self.num_minibatches}. Raise the "
                "batch_size of the data module's `text`."
            )
        rows = torch.arange(count, device=text["input_ids"].device)
        return [_rows(text, part) for part in rows.tensor_split(self.num_minibatches)]


def _rows(batch: BranchedBatch, rows: Tensor) -> BranchedBatch:
    """Some rows, as wide as the longest of them."""
    width = int((batch["branch_ids"][rows] >= 0).sum(-1).max())
    return BranchedBatch(
        input_ids=batch["input_ids"][rows, :width],
        branch_ids=batch["branch_ids"][rows, :width],
        position_ids=batch["position_ids"][rows, :width],
    )
