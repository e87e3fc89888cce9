"""Acting: from a batch of prompts to a scored rollout. Learning from it is `policy.py`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.errors import DataError
from lit_rlhf.functional.kl import k1
from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.models import ModelSpec, evaluating, export_policy, gathered
from lit_rlhf.models.flops import generation_flops
from lit_rlhf.modules.phases import Phases
from lit_rlhf.modules.reference import ReferencedModule
from lit_rlhf.modules.rollouts import microbatch_indices, repeat_columns, rollout_batch, row_lengths
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import NativeEngine, RolloutEngine, Sampling
from lit_rlhf.seeding import sample_seeds
from lit_rlhf.types import (
    BranchedBatch,
    BranchOutput,
    Completions,
    Generation,
    PromptBatch,
    Rollout,
)


class ActingModule(ReferencedModule):
    """A policy that samples completions, and a reward that scores them: all of an algorithm but the learning.

    Args:
        backbone: The policy; the reference is the same base with adapters off, or a frozen copy.
        reward: Scores completions; see `lit_rlhf.rewards`.
        engine: Samples completions; default `NativeEngine()`.
        sampling: Length limit and temperature of training rollouts.
        eval_sampling: The same for validation and prediction; default: as in training.
        num_samples: Completions per prompt in training; validation takes one.
        microbatch_tokens: Padded tokens of one forward; bounds memory, never changes the result.
        recompute_logprobs: Take `old_logprobs` from a forward of the training kind instead of the engine's.
        optimizer: Called with parameter groups.
        lr_scheduler: Called with the optimizer, stepped once per optimizer step.
        seed: Seed of rollouts.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        engine: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        eval_sampling: Sampling | None = None,
        num_samples: int = 1,
        microbatch_tokens: int = 8192,
        recompute_logprobs: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, seed)
        self.reward = reward
        self.engine = engine or NativeEngine()
        self.sampling = sampling or Sampling()
        self.eval_sampling = eval_sampling or self.sampling
        self.num_samples = num_samples
        self.microbatch_tokens = microbatch_tokens
        self.recompute_logprobs = recompute_logprobs
        self.iteration = 0
        self.phases = Phases()
        self.samples: list[dict[str, Any]] = []
        """The last batch's prompts, responses and scores: what sample tables show."""
        self.check("num_samples", lambda number: number >= 1, "at least 1")

    @property
    def sampled_values(self) -> str | None:
        """A head on the policy whose values the engine is asked for while it samples."""
        return None

    def configure_roles(self) -> None:
        """Adapter `policy` and the base as reference, or a trainable model and a frozen copy of it."""
        if self.backbone.has_lora:
            self.backbone.add_adapter("policy")
        self.add_reference()
        self.reward.attach(self.backbone)
        for parameter in self.reward.parameters():
            parameter.requires_grad_(False)

    # -- forward passes -----------------------------------------------------------------------------------------------

    def branched(self, rollout: Rollout) -> BranchedBatch:
        """The rollout as branched rows."""
        return rollout_batch(rollout, self.backbone.pad_token_id)

    def policy_forward(
        self, rollout: Rollout, values: str | None = None, entropy: bool = False
    ) -> BranchOutput:
        """Log-probs of the responses under the current policy, at the sampling temperature; and their entropy, differentiable."""
        out: BranchOutput = self.backbone(
            self.branched(rollout),
            num_branches=rollout.num_samples,
            role="policy",
            logprobs=True,
            entropy=entropy,
            entropy_grad=entropy,
            values=values,
            temperature=self.sampling.temperature,
        )
        return out

    def reference_forward(self, rollout: Rollout) -> BranchOutput:
        """The same under the reference."""
        model, role = self.reference_model()
        out: BranchOutput = model(
            self.branched(rollout),
            num_branches=rollout.num_samples,
            role=role,
            logprobs=True,
            temperature=self.sampling.temperature,
        )
        return out

    # -- sampling and scoring -----------------------------------------------------------------------------------------

    def sample(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Rollout:
        """Sample and score completions of a batch of prompts."""
        generation, completions = self.generate(batch, sampling, purpose, num_samples)
        with self.phases("reward"):
            scores = self.score(completions)
        self._keep_samples(completions, scores)
        logprobs = generation.logprobs
        return Rollout(
            prompt_ids=completions.prompt_ids,
            prompt_mask=completions.prompt_mask,
            tokens=generation.tokens,
            response_mask=generation.mask,
            finished=generation.finished,
            scores=scores,
            old_logprobs=torch.zeros_like(generation.mask, dtype=torch.float32)
            if logprobs is None
            else logprobs,
            engine_logprobs=logprobs,
            values=generation.values,
        )

    def generate(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> tuple[Generation, Completions]:
        """Completions of a batch of prompts as the engine gives them, and as rewards see them."""
        prompt_ids, prompt_mask = batch["input_ids"], batch["branch_ids"] == 0
        with self.phases("rollout"), gathered(self.backbone):
            generation = self.sample_tokens(batch, sampling, purpose, num_samples)
        self.phases.add_flops(
            "rollout", generation_flops(self.backbone, "policy", prompt_mask, generation.mask)
        )
        return generation, self.completions(
            prompt_ids, prompt_mask, generation, batch.get("columns", {})
        )

    def sample_tokens(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Generation:
        """Completions of a batch of prompts by the policy; those of one prompt are neighbours."""
        return self.engine.generate(
            self.backbone,
            batch["input_ids"],
            batch["branch_ids"] == 0,
            sampling=sampling,
            seeds=self.sample_seeds(batch["index"], purpose, num_samples),
            num_samples=num_samples,
            values=self.sampled_values,
        )

    def sample_seeds(self, index: Tensor, purpose: str, num_samples: int) -> Tensor:
        """A seed (N,) for each sample of each prompt, by what it is for; those of training also by iteration.

        Args:
            index: (B,) positions of the prompts in the data set.
            purpose: "validation" and "predict" draw the same samples each time.
            num_samples: Samples of each prompt.
        """
        which = index.repeat_interleave(num_samples) * num_samples
        which = which + torch.arange(num_samples, device=which.device).repeat(len(index))
        return sample_seeds(
            self.seed, 0 if purpose in ("validation", "predict") else self.iteration, purpose, which
        )

    def completions(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        generation: Generation,
        columns: Mapping[str, list[Any]],
    ) -> Completions:
        """Tokens and texts as rewards see them."""
        num_samples = len(generation.tokens) // len(prompt_ids)
        decode = partial(_decode, self.backbone.tokenizer)
        prompts = [
            decode(ids[mask], False) for ids, mask in zip(prompt_ids, prompt_mask, strict=True)
        ]
        pairs = zip(generation.tokens, generation.mask, strict=True)
        return Completions(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            tokens=generation.tokens,
            response_mask=generation.mask,
            finished=generation.finished,
            prompts=[prompt for prompt in prompts for _ in range(num_samples)],
            responses=[decode(ids[mask], True) for ids, mask in pairs],
            columns=repeat_columns(columns, num_samples),
        )

    def score(self, completions: Completions) -> Tensor:
        """Scores of the completions; a score that is not finite names its sample."""
        with torch.no_grad(), evaluating(self.backbone):
            scores = self.reward.score(completions).float()
        bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
        if bad:
            first = bad[0]
            raise DataError(
                f"{type(self.reward).__name__} gave {float(scores[first])} for {len(bad)} of "
                f"{len(scores)} completions in "
                f"iteration {self.iteration}; the first: prompt {completions.prompts[first]!r}, response "
                f"{completions.responses[first]!r}. A reward must be finite; clip or replace such scores in the reward."
            )
        return scores

    def evaluate(self, rollout: Rollout) -> Rollout:
        """Add the reference's log-probs (and the policy's own, where the engine's are not taken)."""
        ref = torch.zeros_like(rollout.old_logprobs)
        old = rollout.old_logprobs.clone()
        parts = self.parts(rollout)
        with gathered(self.reference_model()[0]):
            for part, rows, inside in parts:
                ref[rows, :inside] = _logprobs(self.reference_forward(part))
        if self.recompute_logprobs or rollout.engine_logprobs is None:
            with gathered(self.backbone):
                for part, rows, inside in parts:
                    old[rows, :inside] = _logprobs(self.policy_forward(part))
        return replace(rollout, ref_logprobs=ref, old_logprobs=old)

    def parts(self, rollout: Rollout) -> list[tuple[Rollout, Tensor, int]]:
        """Length-sorted parts of a rollout with their rows and width, for passes without gradient.

        Processes may have different numbers of parts: run them under `models.gathered`.
        """
        everything = torch.arange(rollout.num_prompts, device=rollout.tokens.device)
        samples = torch.arange(rollout.num_samples, device=rollout.tokens.device)
        parts = []
        for chosen in microbatch_indices(row_lengths(rollout), everything, self.microbatch_tokens):
            part = rollout.select(chosen)
            rows = (chosen[:, None] * rollout.num_samples + samples).flatten()
            parts.append((part, rows, part.tokens.shape[1]))
        return parts

    # -- validation and prediction ------------------------------------------------------------------------------------

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Log score, KL to the reference and length on held-out prompts, from seeds that are the same each time."""
        self._evaluate_batch(batch, "val")

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """The same on test prompts."""
        self._evaluate_batch(batch, "test")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Prompts, responses and scores."""
        self.sample(batch, self.eval_sampling, "predict", 1)
        return self.samples

    def _evaluate_batch(self, batch: PromptBatch, stage: str) -> None:
        with torch.no_grad():
            rollout = self.evaluate(self.sample(batch, self.eval_sampling, "validation", 1))
        assert rollout.ref_logprobs is not None
        mask = rollout.response_mask
        kl = masked_sum(k1(rollout.old_logprobs, rollout.ref_logprobs), mask, dim=-1)
        metrics = {
            f"{stage}/objective/scores": rollout.scores.mean(),
            f"{stage}/objective/kl": kl.mean(),
            f"{stage}/completions/mean_length": mask.sum(-1).float().mean(),
            f"{stage}/completions/clipped_ratio": (~rollout.finished).float().mean(),
        }
        metrics |= {
            f"{stage}/rewards/{name}/mean": scores.mean()
            for name, scores in self.reward.parts.items()
        }
        self.log_dict(metrics, sync_dist=True, batch_size=rollout.num_prompts, on_epoch=True)

    def _keep_samples(self, completions: Completions, scores: Tensor) -> None:
        rows = zip(
            completions.prompts,
            completions.responses,
            scores.tolist(),
            completions.finished.tolist(),
            strict=True,
        )
        self.samples = [
            {
                "iteration": self.iteration,
                "prompt": prompt,
                "response": response,
                "score": score,
                "finished": finished,
            }
            for prompt, response, score, finished in rows
        ]

    # -- results ------------------------------------------------------------------------------------------------------

    def export(self, path: Path, merge: bool = True) -> None:
        """Write the policy for other tools; see `models.export_policy`."""
        export_policy(self.backbone, path, merge=merge)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor, skip_special_tokens: bool) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text


def _logprobs(out: BranchOutput) -> Tensor:
    assert out.logprobs is not None
    return out.logprobs
