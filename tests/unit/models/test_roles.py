"""Roles on one base: what differs, what must not change, and what a step may touch."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, evaluating
from lit_rlhf.types import BranchedBatch
from tests.tolerances import BF16, FP32, FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone, gradients, shake

# peft's, as it wraps a model of transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def logprobs(backbone: Backbone, batch: BranchedBatch, role: str = "policy"):
    return backbone(batch, num_branches=2, role=role, logprobs=True).logprobs


@pytest.fixture
def four(make: MakeBackbone):
    """All four roles on one base."""
    backbone = make(lora=LORA)
    for seed, role in enumerate(("policy", "reward", "value")):
        backbone.add_adapter(role, trainable=role != "reward")
        shake(backbone, role, seed)
    backbone.add_head("reward", trainable=False)
    backbone.add_head("value")
    return backbone


def state_of(backbone: Backbone):
    flags = {name: (p.requires_grad, p.grad is None) for name, p in backbone.named_parameters()}
    training = {name: module.training for name, module in backbone.named_modules()}
    return flags, training


def test_roles_differ_and_the_reference_is_the_base(
    four: Backbone, make: MakeBackbone, batch: BranchedBatch
):
    by_role = {
        role: logprobs(four, batch, role) for role in ("policy", "reference", "reward", "value")
    }
    for role in ("policy", "reward", "value"):
        assert (by_role[role] - by_role["reference"]).abs().max() > 0.1
    assert (by_role["reward"] - by_role["value"]).abs().max() > 0.1
    base = logprobs(make(), batch)
    torch.testing.assert_close(by_role["reference"], base, **FP32)
    torch.testing.assert_close(logprobs(four, batch, None), base, **FP32)


def test_a_fresh_adapter_is_the_identity(make: MakeBackbone, batch: BranchedBatch):
    backbone = make(lora=LORA)
    backbone.add_adapter("policy")
    assert torch.equal(logprobs(backbone, batch), logprobs(backbone, batch, "reference"))


def test_forward_equals_pefts_own(
    four: Backbone, batch: BranchedBatch, tiny_model_dir: Path, tmp_path: Path
):
    four.save_adapter("policy", tmp_path, base=str(tiny_model_dir), task="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    ids = batch["input_ids"][:, :8]
    with four.use_role("policy"), torch.no_grad():
        ours = four.logits(four.decoder(input_ids=ids).last_hidden_state)
        torch.testing.assert_close(ours, theirs(input_ids=ids).logits, **FP32_MODEL)


def test_switching_leaves_requires_grad_and_training_flags_alone(four: Backbone):
    four.decoder.layers[0].eval()
    before = state_of(four)
    with four.use_role("policy"):
        assert state_of(four) == before
        with four.use_role("reference"), four.use_role("value"), four.use_role(None):
            assert state_of(four) == before
    with pytest.raises(RuntimeError, match="boom"), four.use_role("reward"):
        raise RuntimeError("boom")
    assert state_of(four) == before


def test_nesting_and_exceptions_restore_the_role(four: Backbone, batch: BranchedBatch):
    def run():
        return four.decoder(input_ids=batch["input_ids"]).last_hidden_state

    with torch.no_grad():
        base = run()
        with four.use_role("policy"):
            policy = run()
            with four.use_role("reference"):
                assert torch.equal(run(), base)
            assert torch.equal(run(), policy)
            with pytest.raises(RuntimeError), four.use_role("value"):
                raise RuntimeError
            assert torch.equal(run(), policy)
        assert torch.equal(run(), base)


def test_casts_kept_for_inference_follow_the_weights(make: MakeBackbone, batch: BranchedBatch):
    backbone = make(lora=LORA, dtype="bfloat16")
    backbone.add_adapter("policy")
    with torch.no_grad(), backbone.use_role("policy"):
        before = logprobs(backbone, batch)
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)  # an optimizer's step, while a role is on
        inside = logprobs(backbone, batch)
    assert (before - inside).abs().max() > 0.1
    torch.testing.assert_close(logprobs(backbone, batch), inside, **FP32)


def test_gradients_reach_the_role_of_the_forward_alone(four: Backbone, batch: BranchedBatch):
    four.heads["value"].weight.data.normal_()  # a fresh head is 0 and lets no gradient through
    out = four(batch, num_branches=2, role="value", values="value")
    out.values.sum().backward()
    with_gradient = set(gradients(four))
    expected = {
        name
        for name, _ in four.named_parameters()
        if ".value." in name or name == "heads.value.weight"
    }
    assert with_gradient == expected
    assert all(gradient.abs().sum() > 0 for gradient in gradients(four).values())


def test_a_step_leaves_frozen_weights_bit_identical(four: Backbone, batch: BranchedBatch):
    before = copy.deepcopy(four.state_dict())
    optimizer = torch.optim.AdamW([p for p in four.parameters() if p.requires_grad], lr=0.1)
    (
        logprobs(four, batch).sum()
        + four(batch, num_branches=2, role="value", values="value").values.sum()
    ).backward()
    optimizer.step()
    trained = {name for name, p in four.named_parameters() if p.requires_grad}
    for name, value in four.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name


def test_a_frozen_base_gets_no_weight_gradients(four: Backbone, batch: BranchedBatch):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.append(t.shape), t)[1], lambda t: t
    ):
        out = logprobs(four, batch)
    out.sum().backward()
    assert {name for name, p in four.named_parameters() if p.grad is not None} == {
        name for name, p in four.named_parameters() if ".policy." in name
    }
    assert len(four.tokenizer) not in {
        shape[-1] for shape in saved if len(shape) > 1
    }  # no stored logits


def test_initial_adapters_and_heads_depend_on_seed_and_name_alone(make: MakeBackbone):
    def draw(seed: int, *roles: str):
        torch.manual_seed(torch.randint(1000, ()).item())
        backbone = make(lora=LORA, init_seed=seed)
        for role in roles:
            backbone.add_adapter(role)
        backbone.add_head("reward")
        return {
            k: v
            for k, v in backbone.state_dict().items()
            if ".lora_A.policy" in k or k == "heads.reward.weight"
        }

    first, again, other = draw(0, "policy"), draw(0, "value", "policy"), draw(1, "policy")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    bound = 32**-0.5
    down = next(v for k, v in first.items() if "q_proj" in k)
    assert 0.8 * bound < down.abs().max() <= bound


def test_adding_an_adapter_leaves_the_others_alone(make: MakeBackbone):
    backbone = make(lora=LORA)
    backbone.add_adapter("policy")
    before = {name: (p.requires_grad, p.clone()) for name, p in backbone.named_parameters()}
    backbone.add_adapter("reward", trainable=False)
    backbone.add_adapter("value", copy_from="policy")
    for name, parameter in backbone.named_parameters():
        if name in before:
            assert parameter.requires_grad == before[name][0], name
            assert torch.equal(parameter, before[name][1])
        else:
            assert parameter.requires_grad == (".value." in name)
    policy, value = (
        {k: v for k, v in backbone.state_dict().items() if f".{r}." in k}
        for r in ("policy", "value")
    )
    assert all(torch.equal(v, value[k.replace("policy", "value")]) for k, v in policy.items())


def test_adapters_are_float32_on_a_bfloat16_base_and_close_to_pefts(
    make: MakeBackbone, batch: BranchedBatch, tiny_model_dir: Path, tmp_path: Path
):
    backbone = make(lora=LORA, dtype="bfloat16")
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    assert {p.dtype for n, p in backbone.named_parameters() if ".lora_" in n} == {torch.float32}
    out = logprobs(backbone, batch)
    out.sum().backward()
    assert {g.dtype for g in gradients(backbone).values()} == {torch.float32}
    backbone.save_adapter("policy", tmp_path, base=None, task="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    ids = batch["input_ids"][:1]
    theirs = (
        PeftModel.from_pretrained(base, tmp_path)(input_ids=ids[:, :8])
        .logits.float()
        .log_softmax(-1)
    )
    picked = theirs[0, 4:7].gather(-1, ids[0, 5:8, None]).squeeze(-1)
    torch.testing.assert_close(out[0, :3], picked, rtol=BF16["rtol"], atol=2 * BF16["atol"])


def test_an_initial_policy_that_is_an_adapter_is_its_own_reference(
    four: Backbone, make: MakeBackbone, batch: BranchedBatch, tmp_path: Path
):
    four.save_adapter("policy", tmp_path, base=None, task="CAUSAL_LM")
    backbone = make(adapter=str(tmp_path))
    backbone.add_adapter("policy")
    assert backbone.has_lora
    assert backbone.adapters == ("policy", "reference")
    torch.testing.assert_close(logprobs(backbone, batch), logprobs(four, batch), **FP32)
    assert torch.equal(logprobs(backbone, batch), logprobs(backbone, batch, "reference"))
    shake(backbone, "policy")
    torch.testing.assert_close(
        logprobs(backbone, batch, "reference"), logprobs(four, batch), **FP32
    )
    assert {p.requires_grad for n, p in backbone.named_parameters() if ".reference." in n} == {
        False
    }


@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "down_proj"]}, {"rslora": True}, {"dropout": 0.5}]
)
def test_lora_options_mean_what_peft_means(
    make: MakeBackbone,
    batch: BranchedBatch,
    tiny_model_dir: Path,
    tmp_path: Path,
    options: dict[str, Any],
):
    backbone = make(lora=LoraSpec(rank=4, alpha=6.0, **options))
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    backbone.save_adapter("policy", tmp_path, base=None, task="CAUSAL_LM")
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path
    )
    assert theirs.peft_config["default"].r == 4
    with torch.no_grad(), evaluating(backbone), backbone.use_role("policy"):
        ours = backbone.logits(backbone.decoder(input_ids=batch["input_ids"]).last_hidden_state)
        torch.testing.assert_close(ours, theirs(input_ids=batch["input_ids"]).logits, **FP32_MODEL)
    if "dropout" in options:
        assert not torch.equal(logprobs(backbone, batch), logprobs(backbone, batch))


def test_frozen_copy(make: MakeBackbone, batch: BranchedBatch):
    backbone = make()
    frozen = backbone.frozen_copy()
    with torch.no_grad():
        before = logprobs(frozen, batch, "reference")
        for parameter in backbone.parameters():
            parameter.add_(0.05)
    assert torch.equal(logprobs(frozen, batch, "reference"), before)
    assert frozen.tokenizer is backbone.tokenizer
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(module.training for module in frozen.modules())
    half = make().frozen_copy("bfloat16")
    assert next(half.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(logprobs(half, batch), before, rtol=0.05, atol=0.3)


def test_evaluating_restores_each_flag(four: Backbone):
    four.decoder.layers[1].eval()
    before = state_of(four)[1]
    with evaluating(four):
        assert not any(module.training for module in four.modules())
    assert state_of(four)[1] == before
    with pytest.raises(RuntimeError), evaluating(four):
        raise RuntimeError
    assert state_of(four)[1] == before


def test_the_reference_of_a_fully_trained_model_is_refused(
    make: MakeBackbone, batch: BranchedBatch
):
    backbone = make()
    with pytest.raises(ConfigurationError, match="no longer its own reference"):
        logprobs(backbone, batch, "reference")
    assert torch.equal(
        logprobs(backbone.frozen_copy(), batch, "reference"), logprobs(backbone, batch)
    )


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda b: b.use_role("polciy"), "There is no role 'polciy'"),
        (lambda b: b.add_adapter("policy"), "There is an adapter for the role 'policy' already"),
        (lambda b: b.add_head("value"), "There is a head for the role 'value' already"),
        (lambda b: b.add_adapter("x", copy_from="y"), "There is no adapter 'y'; there are"),
        (lambda b: b.add_head("x", copy_from="y"), "There is no head 'y'; there are"),
        (
            lambda b: b.add_adapter("x", lora=LoraSpec(target_modules=["qproj"])),
            "'qproj' names no linear layer",
        ),
        (
            lambda b: b.add_adapter("x", lora=LoraSpec(target_modules=["lm_head"])),
            "'lm_head' names no linear layer",
        ),
    ],
)
def test_mistakes_are_named(four: Backbone, act: Callable[[Backbone], object], message: str):
    with pytest.raises(ConfigurationError, match=message):
        act(four)


def test_an_adapter_on_a_moving_base_is_refused(make: MakeBackbone):
    with pytest.raises(ConfigurationError, match="on a base that is trained in full"):
        make().add_adapter("policy")


def test_unknown_heads_and_missing_lm_head_are_named(make: MakeBackbone, batch: BranchedBatch):
    backbone = make(lm_head=False)
    with pytest.raises(ConfigurationError, match="loaded without its LM head"):
        logprobs(backbone, batch)
    with pytest.raises(ConfigurationError, match="There is no head 'value'"):
        backbone(batch, num_branches=2, values="value")


class TestAdapterFiles:
    @pytest.fixture
    def saved(self, four: Backbone, tmp_path: Path):
        four.save_adapter("policy", tmp_path, base=None, task="CAUSAL_LM")
        return tmp_path

    def refused(self, make: MakeBackbone, path: Path, message: str, **options: Any):
        backbone = make(lora=LORA, **options)
        with pytest.raises(CheckpointError, match=message):
            backbone.add_adapter("policy", path=str(path))

    def test_missing_file(self, make: MakeBackbone, saved: Path):
        (saved / "adapter_model.safetensors").unlink()
        self.refused(make, saved, "has no file adapter_model.safetensors")

    def test_missing_directory(self, make: MakeBackbone, tmp_path: Path):
        self.refused(make, tmp_path / "nowhere", "no such directory")

    def test_torn_file(self, make: MakeBackbone, saved: Path):
        file = saved / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(make, saved, "may be torn")

    def test_another_base(self, make: MakeBackbone, saved: Path, tiny_model_dir: Path):
        config = {
            "model_type": "llama",
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
        }
        options = {"name": None, "config": config, "tokenizer": str(tiny_model_dir)}
        self.refused(
            make, saved, "is of another base: .* fits a layer of width 64, ours has 96", **options
        )

    def test_fewer_layers(self, make: MakeBackbone, saved: Path, tiny_model_dir: Path):
        config = {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        }
        options = {"name": None, "config": config, "tokenizer": str(tiny_model_dir)}
        self.refused(make, saved, "changes layers that the base doesn't have", **options)

    def test_incomplete(self, make: MakeBackbone, saved: Path):
        from safetensors.torch import load_file, save_file

        state = load_file(saved / "adapter_model.safetensors")
        state.pop(next(key for key in state if "lora_B" in key))
        save_file(state, saved / "adapter_model.safetensors")
        self.refused(make, saved, "doesn't fit: missing \\['layers.0")

    def test_other_kinds(self, make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model_dir), LoraConfig(r=2, use_dora=True)
        )
        model.save_pretrained(tmp_path)
        self.refused(make, tmp_path, "uses \\['use_dora'\\] of peft")

    def test_trained_by_peft(
        self, make: MakeBackbone, batch: BranchedBatch, tiny_model_dir: Path, tmp_path: Path
    ):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        config = LoraConfig(
            r=3, lora_alpha=5, target_modules=["k_proj", "up_proj"], init_lora_weights=False
        )
        theirs = get_peft_model(base, config)
        theirs.save_pretrained(tmp_path)
        backbone = make(lora=LORA)
        backbone.add_adapter("policy", path=str(tmp_path))
        with torch.no_grad(), backbone.use_role("policy"):
            ours = backbone.logits(backbone.decoder(input_ids=batch["input_ids"]).last_hidden_state)
            torch.testing.assert_close(
                ours, theirs(input_ids=batch["input_ids"]).logits, **FP32_MODEL
            )
