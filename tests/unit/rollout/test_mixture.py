"""Sampling from geometric mixtures: the distribution of each token, and the limits."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.rollout.mixture import Component, sample_mixture
from lit_rlhf.types import Prompts
from tests.tolerances import FP32_MODEL

PROMPTS = ["how was the film? ", "a", "the hotel: "]


@pytest.fixture(scope="module")
def backbone(tiny_model_dir: Path) -> Backbone:
    """A policy away from its reference."""
    made = Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)))
    made.add_adapter("policy")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.add_(
                    torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(
                        parameter
                    )
                    * 0.3
                )
    return made


def prompts(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [backbone.tokenizer.encode(text) for text in PROMPTS]
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    return padded, torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])


def test_tokens_follow_the_mixture_of_both_at_each_step(backbone: Backbone) -> None:
    ids, mask = prompts(backbone)
    parts = [Component(backbone, "policy", 0.7), Component(backbone, "reference", 0.3)]
    sampling = Sampling(max_new_tokens=8, temperature=0.8)
    request = RolloutRequest(Prompts(ids, mask), sampling, torch.arange(12), 4)
    found = sample_mixture(parts, request)
    assert found.logprobs is not None
    assert found.tokens.shape[0] == 12
    shares = []
    for row in range(12):
        prompt = ids[row // 4][mask[row // 4]]
        completion = found.tokens[row][found.mask[row]]
        whole = torch.cat([prompt, completion])[None]
        logits = []
        for role in ("policy", "reference"):
            with backbone.use_role(role), torch.no_grad():
                logits.append(backbone.model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1))
        mixed = ((0.7 * logits[0] + 0.3 * logits[1]) / 0.8).log_softmax(-1)
        expected = mixed.gather(-1, completion[:, None])[:, 0]
        assert_close(found.logprobs[row][found.mask[row]], expected, **FP32_MODEL)
        shares.append(float((logits[0] - logits[1]).abs().max()))
    assert min(shares) > 0.05  # the two differ


@pytest.mark.parametrize("role", ["policy", "reference"])
def test_one_component_alone_is_what_the_engine_samples(backbone: Backbone, role: str) -> None:
    given = Prompts(*prompts(backbone))
    request = RolloutRequest(given, Sampling(max_new_tokens=8), torch.arange(6), 2, role)
    engine = NativeEngine().generate(backbone, request)
    both = [Component(backbone, role, 0.5), Component(backbone, role, 0.5)]
    for parts in ([Component(backbone, role, 1.0)], both):
        found = sample_mixture(parts, request)
        assert torch.equal(found.tokens, engine.tokens)
        assert torch.equal(found.finished, engine.finished)
        assert_close(found.logprobs, engine.logprobs, **FP32_MODEL)
