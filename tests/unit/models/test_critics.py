"""Critics: what they start from, what they train, and what they share."""

from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from torch import Tensor, nn

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import (
    Backbone,
    Critic,
    LoraSpec,
    ModelSpec,
    RewardSource,
    ValueAdapter,
    ValueHead,
    ValueModel,
    export_reward,
    load_reward_model,
)
from lit_rlhf.models.lm_head import ScalarHead
from lit_rlhf.types import BranchedBatch
from tests.tolerances import FP32, FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone, shake
from tests.unit.models.test_export import reward_model, scores


def trainable(module: nn.Module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.fixture
def policy(make: MakeBackbone):
    backbone = make(lora=LORA)
    backbone.add_adapter("policy")
    backbone.add_adapter("reward", trainable=False)
    shake(backbone, "policy")
    shake(backbone, "reward", 2)
    backbone.add_head("reward", trainable=False)
    return backbone


@pytest.fixture
def shared(policy: Backbone):
    return RewardSource(policy, "reward", "reward")


@pytest.fixture(params=["full", "adapter"])
def own(request: pytest.FixtureRequest, make: MakeBackbone, tmp_path: Path):
    """A reward model of its own, loaded from an export."""
    backbone = reward_model(make, lora=None if request.param == "full" else LORA)
    export_reward(backbone, tmp_path / "reward", merge=False)
    return RewardSource(load_reward_model(tmp_path / "reward"), "reward", "reward")


def last_values(values: Tensor, mask: Tensor):
    return values[torch.arange(len(values)), mask.sum(-1) - 1]


def test_value_head_is_on_the_policys_states_and_starts_at_zero(
    policy: Backbone, shared: RewardSource, batch: BranchedBatch
):
    critic = ValueHead()
    critic.attach(policy, shared)
    assert critic.head_on_policy
    values = critic.values(policy, batch, 2)
    assert values.shape == (6, 4)
    assert values.abs().sum() == 0
    policy.heads["value"].weight.data.normal_()
    both = policy(batch, num_branches=2, role="policy", values="value", logprobs=True)
    assert torch.equal(critic.values(policy, batch, 2), both.values)
    assert "heads.value.weight" in trainable(policy)


def test_value_adapter_starts_as_the_reward_model_on_the_same_base(
    policy: Backbone, shared: RewardSource, batch: BranchedBatch
):
    critic = ValueAdapter()
    critic.attach(policy, shared)
    assert not critic.head_on_policy
    values = critic.values(policy, batch, 2)
    reward = policy(batch, num_branches=2, role="reward", values="reward").values
    assert torch.equal(values, reward)
    values.sum().backward()
    assert {name for name, p in policy.named_parameters() if p.grad is not None} == {
        name for name in trainable(policy) if ".value." in name or name == "heads.value.weight"
    }


def test_fresh_value_adapter(policy: Backbone, shared: RewardSource, batch: BranchedBatch):
    critic = ValueAdapter(start="fresh", lora=LoraSpec(rank=2, target_modules=["q_proj"]))
    critic.attach(policy, shared)
    assert critic.values(policy, batch, 2).abs().sum() == 0
    assert (
        len([name for name in trainable(policy) if ".value." in name and ".lora_" in name]) == 2 * 2
    )


def test_value_adapter_from_a_reward_elsewhere_is_refused(policy: Backbone, own: RewardSource):
    with pytest.raises(
        ConfigurationError, match="needs a reward model that is an adapter on the policy's base"
    ):
        ValueAdapter(start="reward").attach(policy, own)
    ValueAdapter().attach(policy, own)
    assert policy.heads["value"].weight.abs().sum() == 0


def test_value_model_starts_as_the_reward_model_and_leaves_it_alone(
    policy: Backbone, own: RewardSource, batch: BranchedBatch
):
    before = scores(own.backbone, batch)
    critic = ValueModel()
    critic.attach(policy, own)
    values = critic.values(policy, batch, 2)
    assert torch.equal(
        values, own.backbone(batch, num_branches=2, role="reward", values="reward").values
    )
    values.square().sum().backward()
    torch.optim.SGD([p for p in critic.parameters() if p.requires_grad], lr=0.1).step()
    assert (critic.values(policy, batch, 2) - values).abs().max() > 1e-3
    assert torch.equal(scores(own.backbone, batch), before)
    full = "reward" not in own.backbone.adapters
    names = trainable(critic)
    assert all(
        (".lora_A.value." in n or ".lora_B.value." in n) != full for n in names if "heads" not in n
    )
    assert "backbone.heads.value.weight" in names
    assert all(p.grad is not None for p in critic.parameters() if p.requires_grad)


def test_value_model_from_a_reward_on_the_policys_base(
    policy: Backbone, shared: RewardSource, batch: BranchedBatch
):
    critic = ValueModel()
    critic.attach(policy, shared)
    reward = policy(batch, num_branches=2, role="reward", values="reward").values
    torch.testing.assert_close(critic.values(policy, batch, 2), reward, **FP32)
    assert not any(".policy." in name or ".reward." in name for name in trainable(critic))


def test_value_model_with_an_adapter_or_in_float32(
    policy: Backbone, make: MakeBackbone, batch: BranchedBatch, tmp_path: Path
):
    export_reward(reward_model(make, dtype="bfloat16"), tmp_path / "reward", merge=True)
    own = RewardSource(load_reward_model(tmp_path / "reward", dtype="bfloat16"), "reward", "reward")
    adapted, wide = ValueModel(lora=LORA), ValueModel(dtype="float32")
    for critic in (adapted, wide):
        critic.attach(policy, own)
    assert all(".lora_" in name or "heads" in name for name in trainable(adapted))
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert torch.isfinite(wide.values(policy, batch, 2)).all()


def test_value_model_from_a_spec(policy: Backbone, tiny_model_dir: Path, batch: BranchedBatch):
    critic = ValueModel(spec=ModelSpec(name=str(tiny_model_dir)))
    critic.attach(policy, None)
    assert critic.values(policy, batch, 2).abs().sum() == 0
    critic.backbone.heads["value"].weight.data.normal_()
    critic.values(policy, batch, 2).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    small = ValueModel(spec=ModelSpec(name=str(tiny_model_dir), quantization="nf4", lora=LORA))
    small.attach(policy, None)
    assert all(".lora_" in name or "heads" in name for name in trainable(small))


def test_value_model_needs_something_to_start_from_and_the_policys_tokenizer(
    policy: Backbone, other_tokenizer_model_dir: Path
):
    with pytest.raises(
        ConfigurationError,
        match=r"ValueModel\(start='auto'\) has nothing to start from: give it spec",
    ):
        ValueModel().attach(policy, None)
    with pytest.raises(ConfigurationError, match="give it a trained reward model"):
        ValueModel(start="reward").attach(policy, None)
    with pytest.raises(ConfigurationError, match="The critic's tokenizer isn't the policy's"):
        ValueModel(spec=ModelSpec(name=str(other_tokenizer_model_dir))).attach(policy, None)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ValueHead", {}),
        ("ValueAdapter", {"start": "fresh", "lora": {"rank": 2}}),
        ("ValueModel", {"spec": {"name": "x", "dtype": "bfloat16"}, "dtype": "float32"}),
    ],
)
def test_from_yaml(name: str, arguments: dict[str, Any]):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--critic", type=Critic)
    config = parser.parse_object(
        {"critic": {"class_path": f"lit_rlhf.models.{name}", "init_args": arguments}}
    )
    critic = parser.instantiate_classes(config).critic
    assert type(critic).__name__ == name
    assert all(
        vars(getattr(critic, key)).items() >= value.items()
        for key, value in arguments.items()
        if key in ("lora", "spec")
    )


class TestScalarHead:
    def test_reward_heads_have_the_stated_spread(self):
        head = ScalarHead(4095, ScalarHead.reward_std(4095), seed=0, name="reward")
        assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
        again, other = ScalarHead(4095, 1.0, 0, "reward"), ScalarHead(4095, 1.0, 0, "value")
        assert torch.equal(head.weight * 64, again.weight)
        assert not torch.equal(other.weight, again.weight)

    def test_computes_in_float32(self):
        head = ScalarHead(8, 1.0)
        hidden = torch.randn(3, 5, 8).bfloat16()
        assert head(hidden).dtype == torch.float32
        torch.testing.assert_close(
            head(hidden), (hidden.float() * head.weight).sum(-1), **FP32_MODEL
        )
