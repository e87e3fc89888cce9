"""PPO with policy, reference, reward and value on one base, where the initial policy is itself an adapter."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Params4bit
from lightning.pytorch import Trainer
from torch import Tensor

from lit_rlhf.callbacks import IterationCheckpoint
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import (
    Backbone,
    LoraSpec,
    ModelSpec,
    ValueAdapter,
    export_policy,
    export_reward,
)
from lit_rlhf.models.specs import Quantization
from lit_rlhf.modules import PPOPolicyModule, Updates
from lit_rlhf.modules.minibatches import rollout_batch
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling
from tests.tolerances import FP32_MODEL
from tests.unit.models.conftest import shake
from tests.unit.modules.policies import make_trainer, prompt_batch, prompt_loader

ROLES = ("policy", "reference", "reward", "value")
LORA = LoraSpec(rank=2)


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of a supervised policy and of a reward model, as their runs export them."""
    root = tmp_path_factory.mktemp("adapters")
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LORA))
    for role in ("policy", "reward"):
        backbone.add_adapter(role)
        shake(backbone, role)
    backbone.add_head("reward")
    export_policy(backbone, root / "policy", merge=False)
    export_reward(backbone, root / "reward", merge=False)
    return root


def make(trained: Path, model: Path, quantization: Quantization) -> PPOPolicyModule:
    """Two optimizer steps an iteration, so that all that can move does."""
    return PPOPolicyModule(
        ModelSpec(
            name=str(model), adapter=str(trained / "policy"), lora=LORA, quantization=quantization
        ),
        ModelReward(str(trained / "reward"), share_base=True),
        value=ValueAdapter(start="reward"),
        sampling=Sampling(max_new_tokens=6),
        updates=Updates(epochs=2),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )


def of_role(module: PPOPolicyModule, role: str) -> dict[str, Tensor]:
    """An adapter's weights and its head, copied, without the role's name."""
    found = {
        name: p.detach().clone() for name, p in module.named_parameters() if f".{role}." in name
    }
    return {name.replace(f".{role}.", "."): weight for name, weight in found.items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def run(
    module: PPOPolicyModule,
    model: Path,
    checkpoints: Path,
    ckpt_path: str | None = None,
    epochs: int = 1,
) -> Trainer:
    trainer = make_trainer(
        enable_checkpointing=True,
        callbacks=[IterationCheckpoint(str(checkpoints))],
        max_epochs=epochs,
    )
    trainer.fit(module, prompt_loader(model), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_four_roles_on_one_base(
    trained: Path, tiny_model_dir: Path, tmp_path: Path, quantization: Quantization
) -> None:
    module = make(trained, tiny_model_dir, quantization)
    module.configure_model()
    assert sorted(module.backbone.adapters) == sorted(ROLES)
    assert [part for part in module.modules() if isinstance(part, Backbone)] == [module.backbone]
    packed = [p for p in module.parameters() if isinstance(p, Params4bit)]
    assert len(packed) == (
        14 if quantization == "nf4" else 0
    )  # seven linear layers in each of two: once, not four times
    before = {role: of_role(module, role) for role in ROLES}
    base = {
        name: p.clone()
        for name, p in module.named_parameters()
        if ".lora_" not in name and "heads." not in name
    }
    assert same(before["policy"], before["reference"])
    assert same(before["value"], before["reward"])
    assert not same(
        before["policy"], {k: v for k, v in before["reward"].items() if k in before["policy"]}
    )

    rollout, _ = module.collect(prompt_batch(tiny_model_dir))
    mask = rollout.response_mask
    torch.testing.assert_close(rollout.old_logprobs[mask], rollout.ref_logprobs[mask], **FP32_MODEL)
    with module.backbone.use_role(None):
        batch = rollout_batch(rollout, module.backbone.pad_token_id)
        bare = module.backbone(batch, num_branches=1, role=None, logprobs=True).logprobs
    assert float((bare - rollout.ref_logprobs)[mask].abs().max()) > 1e-2, (
        "the reference is the adapter, not the base"
    )

    run(module, tiny_model_dir, tmp_path)
    after = {role: of_role(module, role) for role in ROLES}
    assert {role: same(before[role], after[role]) for role in ROLES} == {
        "policy": False,
        "reference": True,
        "reward": True,
        "value": False,
    }
    assert all(torch.equal(p, base[name]) for name, p in module.named_parameters() if name in base)

    (checkpoint,) = tmp_path.glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {name.split(".")[-2] for name in state} == {"policy", "value"}
    assert set(state) == {name for name, p in module.named_parameters() if p.requires_grad}


def test_a_missing_adapter_file_is_named_and_the_checkpoint_untouched(
    trained: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run(make(trained, tiny_model_dir, "nf4"), tiny_model_dir, tmp_path / "checkpoints")
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    before = checkpoint.read_bytes()
    for role, file in (("policy", "adapter_model.safetensors"), ("reward", "adapter_config.json")):
        moved = (trained / role / file).rename(tmp_path / file)
        with pytest.raises(
            CheckpointError, match=rf"{trained / role}' has no file {file} \(found: "
        ):
            run(
                make(trained, tiny_model_dir, "nf4"),
                tiny_model_dir,
                tmp_path / "checkpoints",
                "last",
                epochs=2,
            )
        moved.rename(trained / role / file)
    assert list((tmp_path / "checkpoints").iterdir()) == [checkpoint]
    assert checkpoint.read_bytes() == before
    resumed = make(trained, tiny_model_dir, "nf4")
    run(resumed, tiny_model_dir, tmp_path / "checkpoints", "last", epochs=2)
    assert resumed.iteration == 4
