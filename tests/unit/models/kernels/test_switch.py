"""`kernels: auto` against `plain`, which is transformers' and peft's own path."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lit_rlhf.internals.transformers import attention_of
from lit_rlhf.models import Backbone
from lit_rlhf.rollout import HFEngine, NativeEngine, RolloutEngine, RolloutRequest, Sampling
from lit_rlhf.types import BranchedBatch, Generation, Prompts
from tests.tolerances import BF16, FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone, gradients, shake


def pair(make: MakeBackbone, **options: object) -> tuple[Backbone, Backbone]:
    made = []
    for kernels in ("auto", "plain"):
        backbone = make(kernels=kernels, **options)
        if backbone.spec.lora is not None:
            backbone.add_adapter("policy")
            shake(backbone, "policy")
        backbone.add_head("reward")
        made.append(backbone)
    return made[0], made[1]


def loss(backbone: Backbone, batch: BranchedBatch) -> tuple[Tensor, Tensor]:
    out = backbone(batch, num_branches=2, logprobs=True, entropy=True, scores="reward")
    total = (out.logprobs * out.mask).sum() + out.entropy.mean() + out.scores.square().sum()
    total.backward()
    return total.detach(), out.logprobs.detach()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("branching", ["shared", "expanded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_logprobs_and_gradients(
    make: MakeBackbone, batch: BranchedBatch, lora: object, branching: str, dtype: str
) -> None:
    fast, plain = pair(make, lora=lora, branching=branching, dtype=dtype)
    tolerance = FP32_MODEL if dtype == "float32" else BF16
    for ours, theirs in zip(loss(fast, batch), loss(plain, batch), strict=True):
        scale = theirs.abs().max()
        assert_close(ours / scale, theirs / scale, **tolerance)
    found, wanted = gradients(fast), gradients(plain)
    assert found.keys() == wanted.keys()
    for name, theirs in wanted.items():
        gap, size = (found[name].float() - theirs.float()).norm(), theirs.float().norm()
        assert gap <= tolerance["rtol"] * 5 * size + 1e-6, name


def sampled(backbone: Backbone, engine: RolloutEngine) -> Generation:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    sampling = Sampling(max_new_tokens=12)
    return engine.generate(
        backbone, RolloutRequest(Prompts(ids, mask), sampling, torch.arange(4), 2)
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_sampled_tokens(make: MakeBackbone, lora: object) -> None:
    fast, plain = pair(make, lora=lora)
    ours = sampled(fast, NativeEngine())
    for engine in (NativeEngine(), HFEngine()):
        theirs = sampled(plain, engine)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert_close(ours.logprobs, theirs.logprobs, **FP32_MODEL)


def test_plain_is_theirs_alone(make: MakeBackbone) -> None:
    fast, plain = pair(make, lora=LORA)
    kinds = {type(module) for module in plain.modules()}
    assert {LlamaRMSNorm, Linear} <= kinds
    assert not any("kernels" in kind.__module__ for kind in kinds)
    assert attention_of(plain.model.config) == "sdpa"
    assert any("kernels" in type(module).__module__ for module in fast.modules())
    assert replace(fast.spec, kernels="plain") == plain.spec
