"""The template of on-policy algorithms: collect, estimate, update."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lit_rlhf.distributed import num_ranks, sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.policy_losses import approx_kl
from lit_rlhf.functional.rewards import kl_shaped_rewards, missing_eos_penalty
from lit_rlhf.internals.lightning import is_within_iteration, loss_scaler, next_batch
from lit_rlhf.models import ModelSpec, evaluating, export_policy
from lit_rlhf.models.flops import generation_flops
from lit_rlhf.modules import minibatches, parts, refusals
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.collect import read_completions, score_completions
from lit_rlhf.modules.means import SHOWN, Means, evaluation_metrics, rollout_metrics
from lit_rlhf.modules.minibatches import MicrobatchSize, rollout_forward, rollout_logprobs
from lit_rlhf.modules.phases import Phases
from lit_rlhf.modules.reference import Reference
from lit_rlhf.modules.steps import Updates, gradient_sync, gradients, guarded_step
from lit_rlhf.objectives import (
    ClippedSurrogate,
    FixedKL,
    ImportanceCorrection,
    KLController,
    Reduction,
    Surrogate,
    TokenMean,
)
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Ahead, NativeEngine, RolloutEngine, RolloutRequest, Sampling
from lit_rlhf.seeding import generator, sample_seeds
from lit_rlhf.types import (
    BranchOutput,
    Completions,
    EstimatedRollout,
    EvaluatedRollout,
    Generation,
    LossOutput,
    PromptBatch,
    Prompts,
    Rollout,
    Sample,
    ScoredRollout,
    asked,
)


class PolicyModule(RLHFModule):
    r"""The template of on-policy algorithms: override `estimate` to make one.

    The objective is $E_\pi[r(x, y)] - \beta\,KL(\pi \,\|\, \pi_{ref})$, optimized by hand from the policy's own
    samples.

    A batch of prompts is one iteration: rollout, reward, reference (and values), then `updates.epochs` passes over
    `updates.minibatches` minibatches, one optimizer step each. An algorithm overrides `estimate`, `shape_rewards` or
    `loss`. Without `estimate` a policy samples, validates and predicts, but doesn't learn.

    Training steps give callbacks `{"samples": ...}`, validation and test steps too, `predict` a list of `Sample`.

    Args:
        backbone: The initial policy; the reference is the same base with adapters off, or a frozen copy.
        reward: Scores completions; see `lit_rlhf.rewards`.
        reference: What the policy is held to, $\pi_{ref}$; default: the initial policy. Others are `TeacherModel` and
            `TeacherServer`.
        engine: Samples completions; default `NativeEngine()`.
        sampling: Length limit and temperature of rollouts. Losses use the log-probs of the tempered distribution. Top-k
            and top-p are refused here: the loss would be that of another distribution than the one sampled from.
        eval_sampling: The same for validation and prediction; default: as in training.
        num_samples: Completions per prompt in training; validation takes one. None: the method's own number, here 1.
        updates: How a rollout becomes optimizer steps; see `Updates`.
        kl: The coefficient beta, fixed or adaptive; default `FixedKL(0.05)`.
        surrogate: The policy-gradient surrogate; default: PPO's clip at 0.2.
        reduction: How token losses become one number; default: mean over all tokens of the minibatch.
        missing_eos_penalty: Subtracted from the score of a completion cut at the length limit.
        mask_truncated: Leave completions cut at the length limit out of the loss (overlong filtering,
            arXiv:2503.14476): being cut says nothing of what they would have been. Advantages still count their scores.
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
    default_parts: ClassVar[Mapping[str, Callable[[], Any]]] = {
        "kl": partial(FixedKL, 0.05),
        "surrogate": ClippedSurrogate,
        "reduction": TokenMean,
    }
    """What stands where an option is left out; a named method is mostly such a table."""
    default_epochs: ClassVar[int] = 1
    default_samples: ClassVar[int] = 1
    in_pairs: ClassVar[bool] = False  # whether a sample without score takes its neighbour along
    draws_samples: ClassVar[bool] = True  # callbacks that show or watch samples ask for it
    sampled_values: str | None = None  # the head whose values an engine is asked for as it samples

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        reference: Reference | None = None,
        engine: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        eval_sampling: Sampling | None = None,
        num_samples: int | None = None,
        updates: Updates | None = None,
        kl: KLController | None = None,
        surrogate: Surrogate | None = None,
        reduction: Reduction | None = None,
        missing_eos_penalty: float = 0.0,
        mask_truncated: bool = False,
        recompute_logprobs: bool = False,
        importance_correction: ImportanceCorrection | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        updates = updates or Updates()
        updates = replace(updates, epochs=updates.epochs or self.default_epochs)
        super().__init__(
            backbone, optimizer=optimizer, lr_scheduler=lr_scheduler, seed=seed, steps=updates
        )
        self.automatic_optimization = False
        self.reference = reference or Reference()
        self.reward = reward
        self.engine = engine or NativeEngine()
        self.sampling = sampling or Sampling()
        self.eval_sampling = eval_sampling or self.sampling
        self.num_samples = self.default_samples if num_samples is None else num_samples
        self.updates = updates
        self.kl: KLController = self.part("kl", kl)
        self.surrogate: Surrogate = self.part("surrogate", surrogate)
        self.reduction: Reduction = self.part("reduction", reduction)
        self.missing_eos_penalty = missing_eos_penalty
        self.mask_truncated = mask_truncated
        self.recompute_logprobs = recompute_logprobs
        self.importance_correction = importance_correction
        self.iteration = 0
        self.phases = Phases()
        self.microbatch_size = MicrobatchSize(updates.microbatch_tokens, self.phases)
        self.means = Means()
        samples, penalty = self.num_samples, missing_eos_penalty
        check_option(samples >= 1, self, "num_samples", samples, "at least 1")
        check_option(penalty >= 0, self, "missing_eos_penalty", penalty, "0 or more")
        refusals.refuse_sampling(self.sampling)
        self.reference.require_sampling(self.sampling)
        refusals.refuse_updates(updates, self.surrogate)
        refusals.refuse_logprobs(self.engine, importance_correction, recompute=recompute_logprobs)

    def part(self, name: str, given: Any) -> Any:
        """An injected part, or the method's own where none is given."""
        return self.default_parts[name]() if given is None else given

    def configure_callbacks(self) -> list[Callback]:
        """Those of every module; asked before Lightning refuses options of its own steps, with a way out of its own."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            refusals.refuse_automatic_options(self.trainer, self)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Refuse a class without its method, strategies that break manual optimization, and counts of steps."""
        super().setup(stage)
        if stage == "fit":
            refusals.refuse_open_estimate(self, PolicyModule.estimate)
        refusals.refuse_trainer_options(self.trainer, stage, self.updates.per_iteration)

    def configure_roles(self) -> None:
        """Adapter `policy` and the base as reference, or a trainable model and a frozen copy of it."""
        if self.backbone.has_lora:
            self.backbone.add_adapter("policy")
        self.reference.attach(self.backbone)
        self.reward.attach(self.backbone)
        self.reward.requires_grad_(False)

    def on_train_start(self) -> None:
        """Refuse optimizers that would be stepped wrongly, and look at the devices that a run goes on with."""
        super().on_train_start()
        refusals.refuse_own_optimizers(self.trainer)
        self.microbatch_size.begin(self.device)

    # -- the iteration ------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, list[Sample]]:
        """One iteration on a batch of prompts."""
        self.phases.reset()
        collected, samples = self.collect(batch)
        rollout = self.estimated(collected)
        with self.phases("update", total=self.updates.per_iteration) as advance:
            for step, minibatch in enumerate(self.schedule(self.learned(rollout))):
                drift = self.update(minibatch, batch, step)
                advance()
                if self.updates.target_kl is not None and drift > self.updates.target_kl:
                    break
        self.finish_iteration(rollout)
        return {"samples": samples}

    @torch.no_grad()
    def collect(self, batch: PromptBatch) -> tuple[EvaluatedRollout, list[Sample]]:
        """Sample completions, score them, and add what the losses need of frozen models: of all processes together."""
        rollout, samples = self.draw(batch)
        with self.phases("reference"), evaluating(self.backbone):
            evaluated = self.evaluate(rollout)
        return minibatches.gather_rollout(evaluated), samples

    def estimate(self, rollout: EvaluatedRollout) -> EvaluatedRollout:
        """Make advantages of `shape_rewards`, `rollout.with_advantages(...)`; what tells algorithms apart."""
        refusals.refuse_open_estimate(self, PolicyModule.estimate)
        raise NotImplementedError

    def estimated(self, rollout: EvaluatedRollout) -> EvaluatedRollout:
        """What `estimate` makes; refused where it makes no rollout."""
        made: object = self.estimate(rollout)
        if isinstance(made, EvaluatedRollout):
            refusals.refuse_advantages(self, made)
            return made
        raise ConfigurationError(
            f"{type(self).__name__}.estimate returned {type(made).__name__}: it must return a rollout, which "
            "rollout.with_advantages(...) makes."
        )

    def learned(self, rollout: EvaluatedRollout) -> EvaluatedRollout:
        """What the updates see of an iteration: without the completions that were cut, if so asked."""
        if not self.mask_truncated:
            return rollout
        cut = rollout.scores.left_out | ~rollout.completions.finished
        return rollout.leave_out(cut, pairs=self.in_pairs)

    def schedule(self, rollout: EvaluatedRollout) -> Iterator[EvaluatedRollout]:
        """Minibatches of each epoch, in an order that depends on seed, iteration and epoch alone."""
        for epoch in range(self.updates.epochs or self.default_epochs):
            order = generator(self.seed, self.iteration, "minibatches", epoch)
            count, ranks = self.updates.minibatches, num_ranks()
            for indices in minibatches.minibatch_indices(rollout.num_prompts, count, order, ranks):
                yield rollout.select(indices)

    def update(self, minibatch: EvaluatedRollout, batch: PromptBatch, step: int) -> float:
        """Sum a minibatch's gradient over microbatches, clip it and step.

        Args:
            minibatch: Of all processes, so its denominator is global; each takes its own share of the rows.
            batch: The iteration's prompts, with what else the data set has for losses beside that of the rollout.
            step: Number of the update within the iteration.

        Returns:
            The mean approximate KL to the policy that sampled, in nats per token; 0 where `target_kl` asks for none.
        """
        total = self.reduction.denominator(minibatch.response_mask).clamp_min(1)
        self.phases.tokens["update"] += int(minibatch.lengths.sum())
        stats, drift = Means(), Means()
        for micro, last in self.microbatch_size.parts(minibatch, self.device):
            mask = micro.response_mask
            with gradient_sync(self.trainer, enabled=last):
                output = LossOutput.of(self.loss(micro), mask.shape, self)
                loss = self.reduction.numerator(output.loss, mask) / total
                self.manual_backward(loss * num_ranks())
            stats.add_all(output.metrics, mask)
            if self.updates.target_kl is not None:
                drift.add("kl", self.drift(micro, output.logprobs), self.own_tokens(mask))
        optimizer: Any = self.optimizers()
        trained, lr = gradients(optimizer), torch.tensor(float(optimizer.param_groups[0]["lr"]))
        stats.add_all({"lr": lr, "grad_norm": self.take_step()})
        self.microbatch_size.choose(trained, optimizer, self.device)
        self.means.join(stats, self.device)
        return drift.compute(sum_over_ranks, self.device).get("kl", 0.0)

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        """The unreduced loss (N, T) of a microbatch."""
        logprobs = asked(self.policy_forward(minibatch).logprobs)
        return self.surrogate_loss(logprobs, EstimatedRollout.of(minibatch))

    def take_step(self) -> Tensor:
        """Clip, step, move the schedule; skip a step whose gradient isn't finite. Returns the norm before clipping."""
        limit = self.updates.max_grad_norm
        norm, taken = guarded_step(self.optimizers(), self.guard, loss_scaler(self), limit)
        if taken and isinstance(schedule := self.lr_schedulers(), LRScheduler):
            schedule.step()
        return norm

    def finish_iteration(self, rollout: EvaluatedRollout) -> None:
        """Log, move the KL coefficient, count the iteration."""
        weights = self.importance_weights(rollout)
        metrics = rollout_metrics(rollout, self.kl.value, weights, self.iteration)
        metrics |= self.means.compute() | {"skipped_steps": self.guard.skipped}
        self.means = Means()
        named = {f"train/{name}": float(value) for name, value in metrics.items()}
        self.log_dict(named, batch_size=rollout.num_prompts)
        shown = {short: metrics[name] for short, name in SHOWN.items() if name in metrics}
        self.log_dict(shown, prog_bar=True, logger=False)
        self.kl.update(metrics["objective/kl"], len(rollout.response_mask))
        self.iteration += 1

    # -- collecting ---------------------------------------------------------------------------------------------------

    def draw(self, batch: PromptBatch) -> tuple[ScoredRollout, list[Sample]]:
        """Sample and score this process's completions of a training batch."""
        rollout, samples = self.sample(batch, self.sampling, "rollout", self.num_samples)
        self.count_generated(rollout.response_mask)
        return rollout.leave_out(rollout.scores.left_out, pairs=self.in_pairs), samples

    def sample(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> tuple[ScoredRollout, list[Sample]]:
        """Sample and score completions of a batch of prompts; also as texts."""
        rollout, completions = self.generate(batch, sampling, purpose, num_samples)
        with self.phases("reward"), evaluating(self.backbone):
            scores = score_completions(self.reward, completions, self.iteration)
        samples = completions.samples(scores, self.iteration)
        return rollout.to_stage(ScoredRollout, scores=scores), samples

    def generate(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> tuple[Rollout, Completions]:
        """Completions of a batch of prompts as the engine gives them, and as rewards see them."""
        prompts = Prompts.of(batch)
        self.engine.check(self.backbone)
        with self.phases("rollout"):
            generation = self.sample_tokens(batch, sampling, purpose, num_samples)
            if purpose == "rollout":
                self.look_ahead()
        masks = prompts.mask, generation.mask
        self.phases.flops["rollout"] += generation_flops(self.backbone, "policy", *masks)
        completions = read_completions(self.backbone.tokenizer, prompts, generation, batch)
        return Rollout(prompts, self.engine.stamp(generation, self.iteration)), completions

    def sample_tokens(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Generation:
        """Completions of a batch of prompts by the policy; those of one prompt are neighbours."""
        request = self.rollout_request(batch, sampling, purpose, num_samples)
        return self.engine.generate(self.backbone, request)

    def look_ahead(self) -> None:
        """Have an engine that works ahead begin on the next batch, with the weights as they are."""
        if isinstance(self.engine, Ahead) and (batch := self.next_prompts()) is not None:
            self.iteration += 1  # whose request it is
            request = self.rollout_request(batch, self.sampling, "rollout", self.num_samples)
            self.iteration -= 1
            self.engine.look_ahead(self.backbone, request, self.iteration)

    def next_prompts(self) -> PromptBatch | None:
        """What the next iteration samples first, where it is known."""
        batch: PromptBatch | None = next_batch(self.trainer)
        return batch

    def rollout_request(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> RolloutRequest:
        """What an engine is asked for in this iteration.

        Seeds are of the prompt's place in the data, the purpose and the iteration, but for "validation" and "predict".
        """
        index = batch["index"][:, None] * num_samples
        which = (index + torch.arange(num_samples, device=index.device)).flatten()
        when = 0 if purpose in ("validation", "predict") else self.iteration
        seeds = sample_seeds(self.seed, when, purpose, which)
        prompts, values = Prompts.of(batch), self.sampled_values
        return RolloutRequest(prompts, sampling, seeds, num_samples, values=values)

    def evaluate(self, rollout: ScoredRollout) -> EvaluatedRollout:
        """Add the reference's log-probs, and the policy's own where the engine's are not taken."""
        temperature, budget = self.sampling.temperature, self.microbatch_size.tokens
        ref = self.reference.logprobs(self.backbone, rollout, temperature, budget)
        old = self.sampled_logprobs(rollout)
        return rollout.to_stage(EvaluatedRollout, old_logprobs=old, ref_logprobs=ref)

    def sampled_logprobs(self, rollout: Rollout) -> Tensor:
        """(N, T): the engine's of what it sampled, or the policy's own where those are not taken."""
        found = rollout.completions.logprobs
        if found is not None and not self.recompute_logprobs:
            return found
        temperature, budget = self.sampling.temperature, self.microbatch_size.tokens
        return rollout_logprobs(self.backbone, "policy", temperature, rollout, budget)

    def count_generated(self, mask: Tensor) -> None:
        """Count this process's generated tokens, (N, T) bool, among those of all, for the throughput."""
        self.phases.tokens["rollout"] += int(sum_over_ranks(mask.sum()))

    # -- rewards and losses -------------------------------------------------------------------------------------------

    def penalized_scores(self, rollout: ScoredRollout) -> Tensor:
        """(N,): the scores less what their completions pay for how they end."""
        finished = rollout.completions.finished
        return missing_eos_penalty(rollout.scores.total, finished, self.missing_eos_penalty)

    def shape_rewards(self, rollout: EvaluatedRollout) -> Tensor:
        """Rewards per token, (N, T): the score at the end of the completion minus `kl.value` times k1 at each token.

        The KL term is that of the policy that sampled and carries no gradient (arXiv:1909.08593).
        """
        scores, mask = self.penalized_scores(rollout), rollout.response_mask
        old, ref = rollout.old_logprobs, rollout.ref_logprobs
        return kl_shaped_rewards(scores, old, ref, mask, self.kl.value)

    def policy_forward(self, rollout: Rollout, **more: Any) -> BranchOutput:
        """Log-probs of the responses now, at the sampling temperature; `more` as for `Backbone.forward`."""
        return rollout_forward(self.backbone, "policy", self.sampling.temperature, rollout, **more)

    def surrogate_loss(self, logprobs: Tensor, minibatch: EstimatedRollout) -> LossOutput:
        """The surrogate (N, T) of a microbatch, weighed where the engine sampled from other log-probs."""
        old, mask = minibatch.old_logprobs, minibatch.response_mask
        given = self.surrogate(logprobs, old, minibatch.advantages, mask)
        output = LossOutput.of(given, mask.shape, self.surrogate)
        weights = self.importance_weights(minibatch)
        loss = output.loss if weights is None else weights * output.loss
        return LossOutput(loss, output.metrics, logprobs.detach())

    def importance_weights(self, rollout: EvaluatedRollout) -> Tensor | None:
        """(N, T): how much likelier the policy is to draw each token than the engine was; None without correction."""
        if self.importance_correction is None:
            return None
        engine = refusals.require_logprobs(rollout, self.engine, self.importance_correction)
        return self.importance_correction(rollout.old_logprobs, engine, rollout.response_mask)

    def drift(self, minibatch: EvaluatedRollout, logprobs: Tensor | None) -> Tensor:
        """(N, T): approximate KL between the policy that sampled and this one, by a forward if no loss knows it."""
        if logprobs is None:
            with torch.no_grad():
                logprobs = asked(self.policy_forward(minibatch).logprobs)
        return approx_kl(logprobs, minibatch.old_logprobs, minibatch.response_mask)

    def own_tokens(self, mask: Tensor) -> Tensor:
        """(N, T): the tokens that the policy has sampled itself."""
        return mask

    # -- validation, prediction, results ------------------------------------------------------------------------------

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, list[Sample]]:
        """Log score, KL to the reference and length on held-out prompts, from seeds that are the same each time."""
        return self._evaluate_batch(batch, "val")

    def test_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, list[Sample]]:
        """The same on test prompts."""
        return self._evaluate_batch(batch, "test")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Sample]:
        """Prompts, responses and scores."""
        return self.sample(batch, self.eval_sampling, "predict", 1)[1]

    def _evaluate_batch(self, batch: PromptBatch, stage: str) -> dict[str, list[Sample]]:
        self.microbatch_size.begin(self.device)
        with torch.no_grad():
            scored, samples = self.sample(batch, self.eval_sampling, "validation", 1)
            rollout = self.evaluate(scored)
        self.log_rows(stage, evaluation_metrics(rollout))
        return {"samples": samples}

    def export(self, path: Path, merge: bool = True) -> None:
        """Write the policy for other tools; see `models.export_policy`."""
        parts.export_once(self, partial(export_policy, self.backbone, path, merge=merge))

    def extra_state(self) -> dict[str, Any]:
        """Iteration, KL coefficient, size of microbatches, and what the engine has sampled ahead."""
        state: dict[str, Any] = {"iteration": self.iteration, "kl": self.kl.state_dict()}
        state["microbatch_size"] = self.microbatch_size.state_dict()
        # Within an iteration one process may save alone, and engines are asked by all.
        within = self._trainer is not None and is_within_iteration(self._trainer)
        return state | {"engine": {} if within else self.engine.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.iteration = state["iteration"]
        self.kl.load_state_dict(state["kl"])
        self.microbatch_size.load_state_dict(state.get("microbatch_size", {}))
        self.engine.load_state_dict(state.get("engine", {}))
