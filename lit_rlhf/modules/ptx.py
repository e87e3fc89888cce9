"""PPO with a second stream of text, which the policy must not forget."""

from typing import Any

from torch import Tensor

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.ppo import PPOPolicyModule
from lit_rlhf.modules.text import add_text_gradient, divided_text
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.types import BranchedBatch, EvaluatedRollout, PromptBatch, Sample, asked


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
