"""No export is called done before plain transformers or peft give its numbers."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import Backbone, export, export_policy, export_reward
from lit_rlhf.models.export import merged_state
from lit_rlhf.types import BranchedBatch
from tests.unit.models.conftest import LORA, MakeBackbone, branched, shake
from tests.walks import walk

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROWS = [([11, 12, 13], [[21, 22, 23]])]


def policy(make: MakeBackbone, **options: Any) -> Backbone:
    backbone = make(lora=LORA, **options)
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    backbone.add_head("reward")
    return backbone.eval()


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("architecture", walk(["llama", "gpt2"], "llama"))
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter"])
def test_exports_of_every_kind_read_back(
    make: MakeBackbone,
    model_dirs: dict[str, Path],
    tmp_path: Path,
    quantization: str,
    architecture: str,
    merge: bool,
) -> None:
    backbone = policy(make, name=str(model_dirs[architecture]), quantization=quantization)
    export_policy(backbone, tmp_path / "policy", merge=merge)
    export_reward(backbone, tmp_path / "reward", merge=True, role="policy")
    if merge:
        batch: BranchedBatch = branched(ROWS)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[0, 2:-1].log_softmax(-1)
            ours = backbone(batch, num_branches=1, logprobs=True).logprobs[0]
        theirs = logits.gather(-1, batch["input_ids"][0, 3:, None])[:, 0]
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=0.1 if quantization != "none" else 1e-4
        )


@pytest.mark.parametrize("damage", ["turned", "left out", "not finite"])
def test_what_reads_back_otherwise_is_removed(
    make: MakeBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    backbone = policy(make)
    export_policy(backbone, tmp_path / "out", merge=True)
    before = sorted(path.name for path in tmp_path.iterdir())

    def damaged(*given: Any) -> dict[str, torch.Tensor]:
        state = merged_state(*given)
        key = next(key for key in state if key.endswith("o_proj.weight"))
        state[key] = {"turned": state[key].t() * 5, "left out": state[key] * 0}.get(
            damage, state[key] / 0
        )
        state[key] = state[key].contiguous()
        return state

    monkeypatch.setattr(export, "merged_state", damaged)
    with pytest.raises(CheckpointError, match="gives other log-probs than the model"):
        export_policy(backbone, tmp_path / "out", merge=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_modes_of_the_umask(make: MakeBackbone, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        export_policy(policy(make), tmp_path / "out", merge=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes
