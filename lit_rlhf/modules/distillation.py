"""Learning from a teacher's distributions on the student's own samples, without a reward."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.models import Comparison, ModelSpec, evaluating
from lit_rlhf.modules.minibatches import gather_rollout, rollout_batch
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.modules.ptx import add_text_gradient, divided_text
from lit_rlhf.modules.reference import Teacher
from lit_rlhf.objectives import Divergence, FixedKL, GeneralizedJSD
from lit_rlhf.options import check_option
from lit_rlhf.rewards import NoReward, Reward
from lit_rlhf.types import (
    BranchedBatch,
    BranchOutput,
    EvaluatedRollout,
    LossOutput,
    PromptBatch,
    Sample,
    asked,
)


class DistillationPolicyModule(PolicyModule):
    r"""On-policy distillation (GKD, arXiv:2306.13649): $E_{y\sim S}\sum_t D(T(\cdot|s_t), S(\cdot|s_t))$.

    S is the student (the policy), T the teacher, D an injected divergence of their distributions over the whole
    vocabulary at each token that the student has sampled. No gradient goes through the sampling. The student is taught
    where it goes wrong by itself, and by all tokens instead of the one sampled; its optimum is the teacher. Both are
    compared at the temperature of sampling.

    The policy gradient of the same aim takes no module of its own: `REINFORCEPolicyModule` with `reference` a teacher,
    `NoReward` and `FixedKL(1)` has the reverse KL of each token as its reward (MiniLLM, arXiv:2306.08543), and with a
    reward that of RLHF against the teacher.

    Logs `loss/divergence_avg` (and `loss/given_divergence_avg`); `objective/kl` is the KL to the teacher.

    Args:
        backbone: The student.
        reward: Scores samples for the logs alone; default `NoReward()`.
        teacher: `TeacherModel` or `TeacherAdapter`.
        divergence: D; default `GeneralizedJSD(0.5)`, the paper's and TRL's.
        lmbda: $\lambda$ in (0, 1], weight of the student's own samples; the rest is that of given answers, which
            `PromptTextDataModule` brings. The paper and TRL toss a coin for each batch; here each step has both.
        **kwargs: As for `PolicyModule`, but for what belongs to policy gradients: surrogate, kl, importance_correction
            and missing_eos_penalty. The reduction is `TokenMean()`.

    Raises:
        ConfigurationError: lmbda is out of range, or below 1 and batches have no answers; there is a penalty for
            completions that are cut.
    """

    default_parts: ClassVar[Mapping[str, Callable[[], Any]]] = {
        **PolicyModule.default_parts,
        "kl": partial(FixedKL, 0.0),
        "divergence": GeneralizedJSD,
    }

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward | None = None,
        *,
        teacher: Teacher,
        divergence: Divergence | None = None,
        lmbda: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            reward or NoReward(),
            reference=None,
            kl=None,
            surrogate=None,
            importance_correction=None,
            **kwargs,
        )
        self.reference = teacher
        self.reference.require_model(self)
        self.divergence: Divergence = self.part("divergence", divergence)
        self.lmbda = lmbda
        check_option(0 < lmbda <= 1, self, "lmbda", lmbda, "in (0, 1]")
        penalty = self.missing_eos_penalty
        what = "0: the teacher says where completions end"
        check_option(penalty == 0, self, "missing_eos_penalty", penalty, what)

    @torch.no_grad()
    def collect(self, batch: PromptBatch) -> tuple[EvaluatedRollout, list[Sample]]:
        """Sample; the teacher is asked in the loss, once for all that is wanted of it."""
        rollout, samples = self.draw(batch)
        own = self.sampled_logprobs(rollout)
        evaluated = rollout.to_stage(EvaluatedRollout, old_logprobs=own, ref_logprobs=own)
        return gather_rollout(evaluated), samples

    def estimate(self, rollout: EvaluatedRollout) -> EvaluatedRollout:
        """As it is: nothing is estimated."""
        return rollout

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, list[Sample]]:
        """One iteration on a batch of prompts, and answers where some are given."""
        if self.lmbda < 1:
            divided_text(self, batch)  # or say what is wrong with it, before the rollout
        return super().training_step(batch, batch_idx)

    def update(self, minibatch: EvaluatedRollout, batch: PromptBatch, step: int) -> float:
        """The gradient on given answers, then that on samples, in one step."""
        if self.lmbda < 1:
            parts = divided_text(self, batch)
            text, name = parts[step % len(parts)], "loss/given_divergence_avg"
            add_text_gradient(self, text, self.text_loss, coef=1 - self.lmbda, name=name)
        return super().update(minibatch, batch, step)

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        """The divergence (N, T) at each token."""
        batch = rollout_batch(minibatch, self.backbone.pad_token_id)
        out = self.compare(batch, minibatch.num_samples)
        divergence = asked(out.divergence)
        kl = masked_sum(asked(out.log_ratio), out.mask, dim=-1)
        metrics = {"loss/divergence_avg": divergence, "objective/kl": kl}
        return LossOutput(self.lmbda * divergence, metrics)

    def text_loss(self, text: BranchedBatch) -> tuple[Tensor, Tensor]:
        """The divergence at each token of given answers, (B, T), and their mask."""
        out = self.compare(text, 1)
        return asked(out.divergence), out.mask

    def compare(self, batch: BranchedBatch, num_branches: int) -> BranchOutput:
        """The student against the teacher at the tokens of a batch."""
        teacher, role = self.reference.beside(self.backbone)
        with torch.no_grad(), evaluating(teacher):
            hidden = teacher(batch, num_branches=num_branches, role=role, hidden=True).hidden
        out: BranchOutput = self.backbone(
            batch,
            num_branches=num_branches,
            against=Comparison(hidden, teacher.logits, self.divergence),
            temperature=self.sampling.temperature,
        )
        return out
