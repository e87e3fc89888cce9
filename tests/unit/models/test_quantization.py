"""4-bit and 8-bit bases on CPU: they train adapters, before and after an inference, and stay as they are."""

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from transformers import DynamicCache

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.transformers import cache_argument
from lit_rlhf.models import Backbone, ModelSpec, evaluating, shard
from lit_rlhf.types import BranchedBatch
from tests.tolerances import FP32, FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone, gradients, shake

KINDS = ("nf4", "fp4", "int8")


@pytest.fixture(params=KINDS)
def quantized(request: pytest.FixtureRequest, make: MakeBackbone):
    backbone = make(quantization=request.param, lora=LORA)
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    return backbone


def logprobs(backbone: Backbone, batch: BranchedBatch, role: str = "policy"):
    return backbone(batch, num_branches=2, role=role, logprobs=True).logprobs


def decode(backbone: Backbone, batch: BranchedBatch):
    """What an engine does: eval mode, no gradient, a cache, one token at a time."""
    ids = batch["input_ids"][:, :6]
    cache = DynamicCache()
    with torch.no_grad(), evaluating(backbone), backbone.use_role("policy"):
        states = []
        for t in range(ids.shape[1]):
            out = backbone.decoder(
                input_ids=ids[:, t : t + 1],
                use_cache=True,
                **{cache_argument(backbone.decoder): cache},
            )
            states.append(out.last_hidden_state)
        return backbone.logits(torch.cat(states, 1))


def base_bytes(backbone: Backbone):
    return {
        name: p.detach().clone() for name, p in backbone.named_parameters() if ".lora_" not in name
    }


def test_layers_are_quantized_and_near_the_originals(
    quantized: Backbone, make: MakeBackbone, batch: BranchedBatch
):
    layers = [
        m for m in quantized.modules() if isinstance(m, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    ]
    assert len(layers) == 14
    base, exact = logprobs(quantized, batch, "reference"), logprobs(make(), batch)
    assert 0 < (base - exact).abs().mean() < 0.5
    limit = 0.05 if quantized.spec.quantization == "int8" else 0.5
    assert (base - exact).abs().mean() < limit


def test_gradients_are_right_after_a_cached_decode_in_eval_mode(
    quantized: Backbone, batch: BranchedBatch
):
    logprobs(quantized, batch).sum().backward()
    before = gradients(quantized)
    quantized.zero_grad()
    decode(quantized, batch)
    logprobs(quantized, batch).sum().backward()
    after = gradients(quantized)
    assert {name for name, p in quantized.named_parameters() if p.requires_grad} == set(after)
    for name, gradient in after.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, before[name]), name


def test_decode_and_training_forward_agree(quantized: Backbone, batch: BranchedBatch):
    quantized_logits = decode(quantized, batch)
    with quantized.use_role("policy"):
        states = quantized.decoder(input_ids=batch["input_ids"][:, :6]).last_hidden_state
    torch.testing.assert_close(quantized_logits, quantized.logits(states), **FP32_MODEL)


def test_eval_and_train_mode_agree(quantized: Backbone, batch: BranchedBatch):
    training = logprobs(quantized, batch)
    quantized.eval()
    torch.testing.assert_close(logprobs(quantized, batch), training, **FP32)


def test_a_step_and_an_inference_leave_the_base_bit_identical(
    quantized: Backbone, batch: BranchedBatch
):
    before = base_bytes(quantized)
    optimizer = torch.optim.AdamW([p for p in quantized.parameters() if p.requires_grad], lr=0.1)
    decode(quantized, batch)
    logprobs(quantized, batch).sum().backward()
    optimizer.step()
    quantized.state_dict()
    after = base_bytes(quantized)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_shared_and_expanded_agree(quantized: Backbone, batch: BranchedBatch):
    twin = Backbone.load(ModelSpec(**{**vars(quantized.spec), "branching": "expanded"}))
    twin.add_adapter("policy")
    shake(twin, "policy")
    quantized._runner.branching = "shared"
    torch.testing.assert_close(logprobs(quantized, batch), logprobs(twin, batch), **FP32_MODEL)


def test_a_frozen_copy_computes_the_same(quantized: Backbone, batch: BranchedBatch):
    twin = quantized.frozen_copy()
    torch.testing.assert_close(logprobs(twin, batch), logprobs(quantized, batch), **FP32)


def test_without_lora_it_is_refused_for_training_alone(make: MakeBackbone, batch: BranchedBatch):
    with pytest.raises(
        ConfigurationError,
        match="quantization='nf4' without lora: quantized weights can't be trained",
    ):
        make(quantization="nf4")
    assert torch.isfinite(logprobs(make(quantization="nf4", trainable=False), batch)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sharding_is_refused(make: MakeBackbone, kind: str):
    mesh: Any = None  # never looked at
    with pytest.raises(
        ConfigurationError,
        match=f"^reference.model with quantization='{kind}' can't be sharded by .*Use ddp",
    ):
        shard(make(quantization=kind, lora=LORA), mesh, "reference.model")


def test_sharding_weights_of_two_dtypes_is_refused_and_names_one_of_each(make: MakeBackbone):
    mesh: Any = None  # never looked at
    with_head, with_norm = make(dtype="bfloat16"), make(dtype="bfloat16")
    with_head.add_head("reward")
    with_norm.decoder.get_submodule("norm").float()
    for backbone, odd in (
        (with_head, "heads.reward.weight"),
        (with_norm, "model.model.norm.weight"),
    ):
        with pytest.raises(
            ConfigurationError, match=r"^value can't be .* dtype: float32"
        ) as raised:
            shard(backbone, mesh, "value")
        said = str(raised.value)
        assert f"{odd} is float32" in said
        assert "model.embed_tokens.weight is bfloat16" in said
        assert ("head" in said) == (backbone is with_head)


def test_a_random_initialisation_can_be_quantized(tiny_model_dir: Path, batch: BranchedBatch):
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
    }
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    spec = ModelSpec(config=config, tokenizer=str(tiny_model_dir), quantization="nf4", lora=LORA)
    first, again = Backbone.load(spec), Backbone.load(spec)
    assert isinstance(first.decoder.layers[0].mlp.up_proj, bnb.nn.Linear4bit)
    assert torch.equal(logprobs(first, batch, "reference"), logprobs(again, batch, "reference"))
