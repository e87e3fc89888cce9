"""The template of on-policy algorithms: collect, shape, estimate, update."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.rewards import kl_shaped_rewards, missing_eos_penalty
from lit_rlhf.models import ModelSpec, evaluating
from lit_rlhf.modules.acting import ActingModule
from lit_rlhf.modules.means import Means, rollout_metrics
from lit_rlhf.modules.rollouts import (
    gather_rollout,
    microbatch_indices,
    minibatch_indices,
    row_lengths,
)
from lit_rlhf.objectives import (
    ClippedSurrogate,
    FixedKL,
    ImportanceCorrection,
    KLController,
    Reduction,
    Surrogate,
    TokenMean,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import RolloutEngine, Sampling
from lit_rlhf.seeding import generator
from lit_rlhf.types import LossOutput, PromptBatch, Rollout


class PolicyModule(ActingModule):
    r"""The template of on-policy algorithms: override `estimate` to make one.

    The objective is $E_\pi[r(x, y)] - \beta\,KL(\pi \,\|\, \pi_{ref})$, optimized by hand from the policy's own
    samples.

    A batch of prompts is one iteration: rollout, reward, reference (and values), then `num_epochs` passes over
    `num_minibatches` minibatches, one optimizer step each. An algorithm overrides `shape_rewards`, `estimate` or
    `loss`.

    Args:
        backbone: The initial policy; the reference is the same base with adapters off, or a frozen copy.
        reward: Scores completions; see `lit_rlhf.rewards`.
        engine: Samples completions; default `NativeEngine()`.
        sampling: Length limit and temperature of rollouts. Losses use the log-probs of the tempered distribution. Top-k
            and top-p are refused here: the loss would be that of another distribution than the one sampled from.
        eval_sampling: The same for validation; default: as in training.
        num_samples: Completions per prompt.
        num_epochs: Passes over each rollout; more reuse samples further from the policy that drew them.
        num_minibatches: Optimizer steps per pass.
        microbatch_tokens: Padded tokens of one forward and backward; bounds memory, never changes the result.
        kl: The coefficient beta, fixed or adaptive; default `FixedKL(0.05)`.
        surrogate: The policy-gradient surrogate; default: PPO's clip at 0.2.
        reduction: How token losses become one number; default: mean over all tokens of the minibatch.
        missing_eos_penalty: Subtracted from the score of a completion cut at the length limit.
        max_grad_norm: The gradient's norm is clipped to this before each step; 0 clips nothing.
        target_kl: Ends an iteration's updates early when the mean approximate KL between the sampling policy and the
            current one exceeds this, in nats per token; None never does.
        recompute_logprobs: Take `old_logprobs` from a forward of the training kind instead of the engine's. Costs a
            forward; makes the first ratio exactly one where the engine's arithmetic differs (bfloat16).
        importance_correction: Weighs the surrogate of each token by how likely the policy is to draw it against how
            likely the engine was, such as `TruncatedImportance()`. Needs recompute_logprobs, else both are the same. KL
            and value losses aren't weighed. None: the two are taken to agree; their difference is logged either way.
        optimizer: Called with parameter groups; default AdamW(lr=1e-6).
        lr_scheduler: Called with the optimizer, stepped once per optimizer step.
        seed: Seed of rollouts and minibatch order.
    """

    default_lr = 1e-6

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        engine: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        eval_sampling: Sampling | None = None,
        num_samples: int = 1,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        microbatch_tokens: int = 8192,
        kl: KLController | None = None,
        surrogate: Surrogate | None = None,
        reduction: Reduction | None = None,
        missing_eos_penalty: float = 0.0,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        recompute_logprobs: bool = False,
        importance_correction: ImportanceCorrection | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            reward,
            engine,
            sampling,
            eval_sampling,
            num_samples,
            microbatch_tokens,
            recompute_logprobs,
            optimizer,
            lr_scheduler,
            seed,
        )
        self.automatic_optimization = False
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.kl = kl or FixedKL(0.05)
        self.surrogate = surrogate or ClippedSurrogate()
        self.reduction = reduction or TokenMean()
        self.missing_eos_penalty = missing_eos_penalty
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl
        self.importance_correction = importance_correction
        self.skipped_steps = 0
        self.means = Means()
        self._refuse_bad_options()

    def setup(self, stage: str) -> None:
        """Refuse strategies that break manual optimization, and step counts that are not iterations."""
        super().setup(stage)
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
            raise ConfigurationError(
                f"trainer.strategy={type(strategy).__name__} can't run several optimizer steps within a training step "
                "(Lightning issues 19685, 20138): gradients would be lost in silence. Use ddp, or FSDP2: "
                "ModelParallelStrategy(data_parallel_size=<processes>, tensor_parallel_size=1)."
            )
        if stage == "fit" and self.trainer.max_steps not in (-1, None):
            raise ConfigurationError(
                f"trainer.max_steps={self.trainer.max_steps} counts optimizer steps, of which an iteration has "
                f"{self.num_epochs * self.num_minibatches}. Set trainer.max_epochs, or "
                "trainer.limit_train_batches in iterations."
            )

    # -- the iteration ------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration on a batch of prompts."""
        self.phases.reset()
        rollout = self.estimate(self.shape_rewards(self.collect(batch)))
        with self.phases("update", total=self.num_epochs * self.num_minibatches) as advance:
            for minibatch in self.schedule(rollout):
                kl = self.update(minibatch)
                advance()
                if self.target_kl is not None and kl > self.target_kl:
                    break
        self.finish_iteration(rollout)

    @torch.no_grad()
    def collect(self, batch: PromptBatch) -> Rollout:
        """Sample completions, score them, and add what the losses need of frozen models; all ranks' together."""
        rollout = self.draw(batch)
        with self.phases("reference"), evaluating(self.backbone):
            rollout = self.evaluate(rollout)
        return gather_rollout(rollout, self._gather) if self._world_size > 1 else rollout

    def draw(self, batch: PromptBatch) -> Rollout:
        """Sample and score this process's completions, and count the parts of the reward."""
        rollout = self.sample(batch, self.sampling, "rollout", self.num_samples)
        parts = Means()
        self.add_reward_parts(parts)
        self._count_means(parts)
        self.count_generated(rollout.response_mask)
        return rollout

    def add_reward_parts(self, means: Means) -> None:
        """Add the parts of the reward's last scores to means."""
        means.add_all(
            {f"rewards/{name}/mean": scores for name, scores in self.reward.parts.items()}
        )

    def count_generated(self, mask: Tensor) -> None:
        """Count this process's generated tokens, (N, T) bool, among those of all, for the throughput."""
        self.phases.count("rollout", int(self.sum_over_ranks(mask.sum())))

    def penalized_scores(self, rollout: Rollout) -> Tensor:
        """(N,): the scores less what their completions pay for how they end."""
        return missing_eos_penalty(rollout.scores, rollout.finished, self.missing_eos_penalty)

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """Rewards per token: the score at the end of the completion minus `kl.value` times k1 at each token.

        The KL term is that of the policy that sampled and carries no gradient (arXiv:1909.08593).
        """
        assert rollout.ref_logprobs is not None
        scores, mask = self.penalized_scores(rollout), rollout.response_mask
        rewards = kl_shaped_rewards(
            scores, rollout.old_logprobs, rollout.ref_logprobs, mask, self.kl.value
        )
        return replace(rollout, rewards=rewards)

    def estimate(self, rollout: Rollout) -> Rollout:
        """Fill in `advantages` (and `returns`) from `rewards`; what tells algorithms apart."""
        raise NotImplementedError(
            f"{type(self).__name__} must override estimate(rollout) to fill in advantages."
        )

    def schedule(self, rollout: Rollout) -> Iterator[Rollout]:
        """Minibatches of each epoch, in an order that depends on seed, iteration and epoch alone."""
        for epoch in range(self.num_epochs):
            order = generator(self.seed, self.iteration, "minibatches", epoch)
            for indices in minibatch_indices(
                rollout.num_prompts, self.num_minibatches, order, self._world_size
            ):
                yield rollout.select(indices.to(rollout.tokens.device))

    def loss(self, minibatch: Rollout) -> LossOutput:
        """The unreduced loss (N, T) of a microbatch."""
        out = self.policy_forward(minibatch)
        assert out.logprobs is not None
        return self.surrogate_loss(out.logprobs, minibatch)

    def surrogate_loss(self, logprobs: Tensor, minibatch: Rollout) -> LossOutput:
        """The surrogate (N, T) of a microbatch, weighed where the engine sampled from other log-probs."""
        assert minibatch.advantages is not None
        output = self.surrogate(
            logprobs, minibatch.old_logprobs, minibatch.advantages, minibatch.response_mask
        )
        weights = self._importance_weights(minibatch)
        return output if weights is None else replace(output, loss=weights * output.loss)

    def _importance_weights(self, rollout: Rollout) -> Tensor | None:
        if self.importance_correction is None:
            return None
        if rollout.engine_logprobs is None:
            raise ConfigurationError(
                f"{type(self.engine).__name__} gives no log-probs of what it samples, so importance_correction="
                f"{type(self.importance_correction).__name__} has nothing to compare with. Leave "
                "it out, or use NativeEngine."
            )
        return self.importance_correction(
            rollout.old_logprobs, rollout.engine_logprobs, rollout.response_mask
        )

    def update(self, minibatch: Rollout) -> float:
        """Accumulate a minibatch's gradient over microbatches, clip it and step. Returns the mean approximate KL.

        The minibatch is that of all ranks, so its denominator is global; each rank takes its own share of the rows.
        """
        total = self.reduction.denominator(minibatch.response_mask).clamp_min(1)
        self.phases.count("update", int(row_lengths(minibatch).sum()))
        stats = Means()
        microbatches = self._microbatches(minibatch)
        for i, micro in enumerate(microbatches):
            with self._gradient_sync(enabled=i == len(microbatches) - 1):
                output = self.loss(micro)
                loss = self.reduction.numerator(output.loss, micro.response_mask) / total
                self.manual_backward(loss * self._world_size)
            stats.add_all(output.metrics, micro.response_mask)
        stats.add("grad_norm", self.optimizer_step_on_minibatch())
        return self._count_means(stats).get("policy/approxkl_avg", 0.0)

    def finish_iteration(self, rollout: Rollout) -> None:
        """Log, move the KL coefficient, count the iteration."""
        metrics = self.means.compute() | rollout_metrics(
            rollout, self.kl.value, self._importance_weights(rollout)
        )
        metrics |= {
            "iteration": self.iteration,
            "kl_coef": self.kl.value,
            "skipped_steps": self.skipped_steps,
        }
        self.means = Means()
        self.log_dict(
            {f"train/{name}": float(value) for name, value in metrics.items()},
            batch_size=rollout.num_prompts,
        )
        shown = {"reward": metrics["objective/scores"], "kl": metrics["objective/kl"]}
        self.log_dict(
            {name: float(value) for name, value in shown.items()}, prog_bar=True, logger=False
        )
        self.kl.update(metrics["objective/kl"], len(rollout.tokens))
        self.iteration += 1

    def _gather(self, tensor: Tensor) -> Tensor:
        gathered = self.all_gather(tensor)
        assert isinstance(gathered, Tensor)
        return gathered

    def _count_means(self, local: Means) -> dict[str, float]:
        """Reduce means over ranks and count them among the iteration's."""
        means = local.compute(self.sum_over_ranks, self.device)
        self.means.add_all({name: torch.tensor(value) for name, value in means.items()})
        return means

    # -- the optimizer step -------------------------------------------------------------------------------------------

    def _microbatches(self, minibatch: Rollout) -> list[Rollout]:
        lengths = row_lengths(minibatch)
        everything = torch.arange(minibatch.num_prompts, device=lengths.device)
        shares = [everything[rank :: self._world_size] for rank in range(self._world_size)]
        counts = [
            len(microbatch_indices(lengths, share, self.microbatch_tokens)) for share in shares
        ]
        mine = microbatch_indices(
            lengths, shares[self.global_rank], self.microbatch_tokens, at_least=max(counts)
        )
        return [minibatch.select(indices) for indices in mine]

    def _gradient_sync(self, enabled: bool) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not enabled:
            return strategy.block_backward_sync()
        return nullcontext()

    def optimizer_step_on_minibatch(self) -> Tensor:
        """Clip, step, move the schedule; skip a step whose gradient isn't finite. Returns the norm before clipping."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        # Gradients are the same on all ranks after synchronisation, so all ranks agree whether to step.
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        if isinstance(norm, DTensor):  # under FSDP2
            norm = norm.full_tensor()
        if torch.isfinite(norm):
            optimizer.step()
            if isinstance(scheduler := self.lr_schedulers(), LRScheduler):
                scheduler.step()
        else:
            self.skipped_steps += 1
        optimizer.zero_grad(set_to_none=True)
        return norm.nan_to_num(posinf=0.0) if not torch.isfinite(norm) else norm

    # -- state --------------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """Iteration, KL coefficient, the reward's own state, skipped steps."""
        return {
            "iteration": self.iteration,
            "kl": self.kl.state_dict(),
            "reward": self.reward.running_state(),
            "skipped_steps": self.skipped_steps,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.iteration = state["iteration"]
        self.skipped_steps = state["skipped_steps"]
        self.kl.load_state_dict(state["kl"])
        self.reward.load_running_state(state["reward"])

    def _refuse_bad_options(self) -> None:
        if self.sampling.top_p < 1.0 or self.sampling.top_k > 0:
            raise ConfigurationError(
                f"sampling.top_p={self.sampling.top_p}, sampling.top_k={self.sampling.top_k}: "
                "rollouts must come from the whole "
                "distribution, for that is the one whose log-probs the loss uses. Set them in eval_sampling instead."
            )
        if self.sampling.temperature <= 0:
            raise ConfigurationError(
                f"sampling.temperature={self.sampling.temperature}: greedy rollouts explore "
                "nothing and have no log-probs. "
                "Use a temperature above 0 (1.0 samples the policy itself)."
            )
        if self.sampling.min_new_tokens > 0:
            raise ConfigurationError(
                f"sampling.min_new_tokens={self.sampling.min_new_tokens} forbids tokens that the "
                "loss counts with. Reward length "
                "instead, or set it in eval_sampling."
            )
        for name in ("num_epochs", "num_minibatches", "microbatch_tokens"):
            self.check(name, lambda number: number >= 1, "at least 1")
        steps = self.num_epochs * self.num_minibatches
        if self.surrogate.on_policy_only and steps > 1:
            raise ConfigurationError(
                f"{type(self.surrogate).__name__} is right for one optimizer step per rollout; "
                f"num_epochs={self.num_epochs} and "
                f"num_minibatches={self.num_minibatches} take {steps}. Set both to 1, or use ClippedSurrogate."
            )
        if self.target_kl is not None and steps == 1:
            raise ConfigurationError(
                f"target_kl={self.target_kl} ends an iteration before its second optimizer step or a later one, and "
                "num_epochs=1 with num_minibatches=1 takes one alone. Leave target_kl out, or raise one of them."
            )
        if not self.engine.own_arithmetic and not self.recompute_logprobs:
            raise ConfigurationError(
                f"{type(self.engine).__name__} samples with kernels of its own, whose log-probs "
                "are not those of a training "
                "forward: the first ratio would not be 1. Set recompute_logprobs: true; importance_correction: "
                "TruncatedImportance then corrects for what it sampled from."
            )
        if self.importance_correction is not None and not self.recompute_logprobs:
            raise ConfigurationError(
                f"importance_correction={type(self.importance_correction).__name__} compares the "
                "engine's log-probs with those "
                "of a training forward, which recompute_logprobs=False does without: all weights would be 1. Set "
                "recompute_logprobs: true, or leave importance_correction out."
            )
        self.check("max_grad_norm", lambda number: number >= 0, "0 (no clipping) or more")
        self.check("target_kl", lambda number: number is None or number > 0, "above 0, or null")
        self.check("missing_eos_penalty", lambda number: number >= 0, "0 or more")
