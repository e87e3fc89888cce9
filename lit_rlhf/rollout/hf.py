"""Generation by transformers, for architectures that `NativeEngine` can't decode."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.numerics import cumulative_sum
from lit_rlhf.models import Backbone, evaluating, gathered
from lit_rlhf.rollout.base import LocalEngine, RolloutRequest, Sampling, end_tokens
from lit_rlhf.rollout.sampling import draw_tokens
from lit_rlhf.seeding import uniforms
from lit_rlhf.types import Generation


class HFEngine(LocalEngine):
    """`transformers.generate`, which knows every architecture's cache, at a third of `NativeEngine`'s speed.

    Only the forward passes are transformers': tokens are drawn here, from each row's own seed, so a completion depends
    on its seed and prompt alone and equals the one of `NativeEngine` up to rounding. The global generators aren't drawn
    from. Padding goes on the left inside, and every prompt is computed once per sample.
    """

    def check(self, backbone: Backbone, role: str = "policy", longest: int = 0) -> None:
        """Compare a few generated tokens of a backbone with its forward pass, the first time that it is asked for.

        Raises:
            ConfigurationError: They differ, or the model can't generate.
        """
        if not backbone.model.can_generate():
            raise ConfigurationError(
                f"{type(backbone.model).__name__} can't generate: load a causal language model."
            )
        super().check(backbone, role, longest)

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        """See `RolloutEngine.sample`."""
        prompts, sampling, pad = request.prompts, request.sampling, backbone.pad_token_id
        order = prompts.mask.int().argsort(dim=-1, stable=True)  # padding to the front
        mask = prompts.mask.gather(-1, order)
        ids = torch.where(mask, prompts.ids.gather(-1, order), pad)
        ends = end_tokens(backbone, sampling, ids.device)
        draw = _Draw(request.seeds, ids.shape[1], sampling, ends)
        options = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=ends.tolist() or None,
            pad_token_id=pad,
            use_cache=True,
        )
        model: Any = backbone.model
        # generate takes what a config leaves open from the model's own, which may hold penalties: another distribution.
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            with gathered(backbone), evaluating(backbone), backbone.use_role(request.role):
                sequences: Tensor = model.generate(
                    ids.repeat_interleave(request.num_samples, dim=0),
                    attention_mask=mask.repeat_interleave(request.num_samples, dim=0).long(),
                    generation_config=options,
                    logits_processor=LogitsProcessorList([draw]),
                )
        finally:
            model.generation_config = own
        tokens, logprobs = sequences[:, ids.shape[1] :], torch.stack(draw.logprobs, dim=1)
        ended = torch.isin(tokens, ends)
        counts = (cumulative_sum(ended.long()) - ended.long()) == 0
        return Generation(
            tokens=torch.where(counts, tokens, pad),
            mask=counts,
            finished=ended.any(-1),
            logprobs=torch.where(counts, logprobs, 0.0),
        )


class _Draw(LogitsProcessor):
    """Draws the next tokens and leaves no other choice."""

    def __init__(self, seeds: Tensor, width: int, sampling: Sampling, ends: Tensor) -> None:
        self.seeds = seeds
        self.width = width
        self.sampling = sampling
        self.ends = ends
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width
        banned = self.ends if step < self.sampling.min_new_tokens else None
        drawn = uniforms(self.seeds, step)
        tokens, logprobs = draw_tokens(scores.float().clone(), drawn, self.sampling, banned)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
