"""Loading trained reward models: our exports, and those of others as transformers would score them."""

import json
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.models import export_reward, load_reward_model
from lit_rlhf.models.kernels.lora import RoleLinear8bit
from lit_rlhf.types import BranchedBatch
from tests.tolerances import BF16, FP32_MODEL
from tests.unit.models.conftest import LORA, MakeBackbone
from tests.unit.models.test_export import (
    ending_in,
    reward_model,
    same_pad_and_eos,
    scores,
    scores_of_transformers,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter"])
def test_round_trip(make: MakeBackbone, batch: BranchedBatch, tmp_path: Path, merge: bool):
    backbone = reward_model(make, lora=LORA)
    export_reward(backbone, tmp_path / "out", merge=merge, score_mean=0.25, score_std=2.0)
    loaded = load_reward_model(tmp_path / "out")
    torch.testing.assert_close(scores(loaded, batch), scores(backbone, batch), **FP32_MODEL)
    assert (loaded.score_mean, loaded.score_std) == (0.25, 2.0)
    assert ("reward" in loaded.adapters) != merge
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter"])
def test_options(make: MakeBackbone, batch: BranchedBatch, tmp_path: Path, merge: bool):
    backbone = reward_model(make, lora=LORA)
    export_reward(backbone, tmp_path / "out", merge=merge)
    half = load_reward_model(tmp_path / "out", dtype="bfloat16", branching="expanded")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(
        scores(half, batch), scores(backbone, batch), rtol=BF16["rtol"], atol=5 * BF16["atol"]
    )
    small = load_reward_model(tmp_path / "out", quantization="int8")
    assert isinstance(small.decoder.layers[0].mlp.up_proj, bnb.nn.Linear8bitLt | RoleLinear8bit)
    assert (scores(small, batch) - scores(backbone, batch)).abs().max() < 0.3


def classifier(path: Path, tmp_path: Path, seed: int = 0, **options: Any):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **options)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.config.pad_token_id = tokenizer.pad_token_id
    out = tmp_path / "classifier"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_models_of_others(
    model_dirs: dict[str, Path], batch: BranchedBatch, tmp_path: Path, architecture: str
):
    path = classifier(model_dirs[architecture], tmp_path)
    loaded = load_reward_model(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    torch.testing.assert_close(
        scores(loaded, batch), scores_of_transformers(model, path, batch), **FP32_MODEL
    )
    assert (loaded.score_mean, loaded.score_std) == (0.0, 1.0)


def test_models_of_others_that_pad_with_eos_are_read_before_it(
    tiny_model_dir: Path, tmp_path: Path
):
    base = shutil.copytree(tiny_model_dir, tmp_path / "model")
    same_pad_and_eos(base, "others")
    path = classifier(base, tmp_path)
    loaded = load_reward_model(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    batch = ending_in(loaded.tokenizer.eos_token_id)
    theirs = scores_of_transformers(model, path, batch)
    torch.testing.assert_close(scores(loaded, batch), theirs, **FP32_MODEL)
    loaded.score_skip_ids.clear()
    assert (scores(loaded, batch) - theirs).abs().max() > 0.01


def test_adapters_of_others(tiny_model_dir: Path, batch: BranchedBatch, tmp_path: Path):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    base.config.pad_token_id = AutoTokenizer.from_pretrained(tiny_model_dir).pad_token_id
    model = get_peft_model(
        base, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "adapter")
    loaded = load_reward_model(tmp_path / "adapter")
    theirs = scores_of_transformers(model, tmp_path / "adapter", batch)
    torch.testing.assert_close(scores(loaded, batch), theirs, **FP32_MODEL)


def test_a_base_that_has_moved(
    make: MakeBackbone, batch: BranchedBatch, tiny_model_dir: Path, tmp_path: Path
):
    moved = shutil.copytree(tiny_model_dir, tmp_path / "moved")
    backbone = reward_model(make, lora=LORA, name=str(moved))
    export_reward(backbone, tmp_path / "out", merge=False)
    shutil.rmtree(moved)
    with pytest.raises(ConfigurationError, match="moved' doesn't exist"):
        load_reward_model(tmp_path / "out")
    loaded = load_reward_model(tmp_path / "out", base=str(tiny_model_dir))
    torch.testing.assert_close(scores(loaded, batch), scores(backbone, batch), **FP32_MODEL)


class TestRefused:
    def test_missing(self):
        with pytest.raises(
            ConfigurationError, match="The reward model directory '/no/where' doesn't exist"
        ):
            load_reward_model("/no/where")

    def test_a_language_model(self, tiny_model_dir: Path):
        with pytest.raises(
            ConfigurationError, match=r"is no reward model: its config names .*LlamaForCausalLM"
        ):
            load_reward_model(tiny_model_dir)

    def test_several_labels(self, tiny_model_dir: Path, tmp_path: Path):
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3)
        model.save_pretrained(tmp_path)
        with pytest.raises(
            ConfigurationError, match="classifies into 3 labels; a reward model has 1"
        ):
            load_reward_model(tmp_path)

    def test_an_adapter_without_head(
        self, make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path
    ):
        backbone = make(lora=LORA)
        backbone.add_adapter("policy")
        backbone.save_adapter("policy", tmp_path, base=str(tiny_model_dir), task="CAUSAL_LM")
        backbone.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="has no scalar head"):
            load_reward_model(tmp_path)

    def test_an_adapter_without_base(self, make: MakeBackbone, tmp_path: Path):
        backbone = make(lora=LORA)
        backbone.add_adapter("policy")
        backbone.save_adapter("policy", tmp_path, base=None, task="SEQ_CLS")
        with pytest.raises(CheckpointError, match="doesn't say which base it belongs to"):
            load_reward_model(tmp_path)

    def test_a_torn_record(self, make: MakeBackbone, tmp_path: Path):
        export_reward(reward_model(make), tmp_path / "out", merge=True)
        record = tmp_path / "out" / "lit_rlhf.json"
        record.write_text(record.read_text()[:20])
        with pytest.raises(CheckpointError, match="the export may be torn"):
            load_reward_model(tmp_path / "out")

    def test_a_classifier_whose_head_is_missing(self, tiny_model_dir: Path, tmp_path: Path):
        path = shutil.copytree(tiny_model_dir, tmp_path / "headless")
        config = json.loads((path / "config.json").read_text())
        config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"1 tensors are missing .first: ..score.weight"):
            load_reward_model(path)
