"""Adapters that peft wrote, with its options: as peft reads them, or refused with the way to convert."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import Backbone
from lit_rlhf.types import BranchedBatch
from tests.reference.architectures import row_logprobs
from tests.tolerances import FP32_MODEL
from tests.unit.models.conftest import MakeBackbone, branched
from tests.walks import walk

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PROMPT, ANSWER = [11, 12, 13], [21, 22, 23, 24]
ALL = ["q_proj", "v_proj", "down_proj"]


def write(base: Path, out: Path, **options: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, **options})
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(out))


def ours(make: MakeBackbone, path: Path, **options: Any) -> torch.Tensor:
    backbone: Backbone = make(adapter=str(path), **options)
    backbone.add_adapter("policy")
    batch: BranchedBatch = branched([(PROMPT, [ANSWER])])
    with torch.no_grad():
        found = backbone.eval()(batch, num_branches=1, logprobs=True).logprobs
    return found[0]


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}},
        {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {"model.layers.1.mlp.down_proj": 40}},
        {"alpha_pattern": {r".*\.0\..*q_proj": 32}},
        {"layers_to_transform": [1]},
        {"target_modules": r".*layers\.0.*(q|v)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernels", walk(["auto", "plain"], "auto"))
def test_log_probs_are_those_of_peft(
    make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path, options: Any, kernels: str
) -> None:
    write(tiny_model_dir, tmp_path / "adapter", **options)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    plain = row_logprobs(base.eval(), PROMPT, ANSWER)
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    wanted = row_logprobs(model, PROMPT, ANSWER)
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(
        ours(make, tmp_path / "adapter", kernels=kernels), wanted, **FP32_MODEL
    )


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
    ids=str,
)
def test_others_are_refused_with_the_way_out(
    make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path, options: Any
) -> None:
    write(tiny_model_dir, tmp_path / "adapter", **options)
    with pytest.raises(CheckpointError, match="merge_and_unload") as caught:
        ours(make, tmp_path / "adapter")
    assert next(iter(options)) in str(caught.value)
