"""Exports: transformers and peft load them and say the same, and they appear whole or not at all."""

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from lit_rlhf import files
from lit_rlhf.errors import CheckpointError, ConfigurationError, FileError
from lit_rlhf.files import whole_directory
from lit_rlhf.functional.branches import branch_layout, expand_branches
from lit_rlhf.models import (
    Backbone,
    LoraSpec,
    ModelSpec,
    export_policy,
    export_reward,
)
from lit_rlhf.models.cards import RECORD
from lit_rlhf.models.export import _size
from lit_rlhf.tokenizers import load_tokenizer, tokenizer_fingerprint
from lit_rlhf.types import BranchedBatch
from tests.tolerances import BF16, FP32_MODEL
from tests.unit.models.conftest import LORA, ROWS, MakeBackbone, branched, shake

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that has room for files of so many bytes and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reward_model(make: MakeBackbone, **options: Any):
    backbone = make(**options)
    if backbone.has_lora:
        backbone.add_adapter("reward")
        shake(backbone, "reward")
    backbone.add_head("reward")
    return backbone


def scores(backbone: Backbone, batch: BranchedBatch, role: str = "reward"):
    with torch.no_grad():
        return backbone(batch, num_branches=2, role=role, scores="reward").scores


def scores_of_transformers(model: Any, path: Path, batch: BranchedBatch, left: bool = False):
    """Each sequence as a plain row, padded by the export's own pad token."""
    pad = AutoTokenizer.from_pretrained(path).pad_token_id
    rows = expand_branches(
        batch["input_ids"], batch["branch_ids"], branch_layout(batch["branch_ids"], 2), pad
    )
    ids, mask = rows.input_ids, rows.mask.long()
    if left:
        order = rows.mask.int().argsort(dim=-1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0].float()


def ending_in(token: int):
    return branched(
        [(prompt, [[*branch, token] for branch in branches]) for prompt, branches in ROWS]
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_reward_as_classifier(
    make: MakeBackbone,
    model_dirs: dict[str, Path],
    batch: BranchedBatch,
    tmp_path: Path,
    architecture: str,
    lora: LoraSpec | None,
):
    backbone = reward_model(make, name=str(model_dirs[architecture]), lora=lora)
    export_reward(backbone, tmp_path / "out", merge=True, score_mean=0.25, score_std=2.0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    assert (model.config.num_labels, model.config.id2label) == (1, {0: "reward"})
    ours = scores(backbone, batch)
    torch.testing.assert_close(
        ours, scores_of_transformers(model, tmp_path / "out", batch), **FP32_MODEL
    )
    record = json.loads((tmp_path / "out" / "lit_rlhf.json").read_text())
    assert (record["kind"], record["score_mean"], record["score_std"]) == ("reward", 0.25, 2.0)


def test_reward_is_read_at_eos_with_padding_on_either_side(make: MakeBackbone, tmp_path: Path):
    backbone = reward_model(make)
    batch = ending_in(backbone.eos_token_ids[0])
    export_reward(backbone, tmp_path / "out", merge=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    for left in (False, True):
        theirs = scores_of_transformers(model, tmp_path / "out", batch, left)
        torch.testing.assert_close(scores(backbone, batch), theirs, **FP32_MODEL)


def same_pad_and_eos(path: Path, kind: str):
    """Rewrite a model directory so that pad equals EOS; returns how many special tokens are left beside it."""
    tokenizer = load_tokenizer(str(path))
    if kind == "others":
        tokenizer.pad_token = tokenizer.eos_token
    else:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        core["added_tokens"] = [
            token for token in core["added_tokens"] if token["content"] == "<eos>"
        ]
        core["post_processor"] = None
        (path / "core.json").write_text(json.dumps(core))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(path / "core.json"),
            eos_token="<eos>",
            pad_token="<eos>",
            bos_token="<eos>",
        )
    tokenizer.save_pretrained(path)


@pytest.mark.parametrize("kind", ["others", "room", "full"])
def test_pad_equal_to_eos(make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path, kind: str):
    import shutil

    path = shutil.copytree(tiny_model_dir, tmp_path / "model")
    same_pad_and_eos(path, kind)
    if kind == "room":
        model = AutoModelForCausalLM.from_pretrained(path)
        model.resize_token_embeddings(280, mean_resizing=False)
        model.save_pretrained(path)
    backbone = reward_model(make, name=str(path))
    eos = backbone.tokenizer.eos_token_id
    assert backbone.pad_token_id == eos
    assert len(backbone.tokenizer) == 267
    export_reward(backbone, tmp_path / "out", merge=True)
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert exported.pad_token_id == model.config.pad_token_id != eos
    assert model.config.vocab_size == {"others": 267, "room": 280, "full": 268}[kind]
    assert backbone.tokenizer.pad_token_id == eos  # ours is left as it was
    batch = ending_in(eos)
    torch.testing.assert_close(
        scores(backbone, batch),
        scores_of_transformers(model, tmp_path / "out", batch),
        **FP32_MODEL,
    )


def test_an_adapter_without_a_token_to_pad_with_is_refused(
    make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path
):
    import shutil

    path = shutil.copytree(tiny_model_dir, tmp_path / "model")
    same_pad_and_eos(path, "full")
    backbone = reward_model(make, name=str(path), lora=LORA)
    with pytest.raises(ConfigurationError, match=r"no special token beside EOS.*merge=True"):
        export_reward(backbone, tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_reward_adapter_loads_with_peft(
    make: MakeBackbone,
    tiny_model_dir: Path,
    batch: BranchedBatch,
    tmp_path: Path,
    quantization: str,
):
    backbone = reward_model(make, lora=LORA, quantization=quantization)
    export_reward(backbone, tmp_path / "out", merge=False)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    model.config.pad_token_id = AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
    if quantization == "none":
        theirs = scores_of_transformers(model, tmp_path / "out", batch)
        torch.testing.assert_close(scores(backbone, batch), theirs, **FP32_MODEL)
    head = load_file(tmp_path / "out" / "adapter_model.safetensors")[
        "base_model.model.score.weight"
    ]
    assert head.shape == (1, 32)


@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4", "int8"])
def test_merging_keeps_the_scores_and_the_base(
    make: MakeBackbone, batch: BranchedBatch, tmp_path: Path, quantization: str
):
    backbone = reward_model(make, lora=LORA, quantization=quantization)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    ours = scores(backbone, batch)
    export_reward(backbone, tmp_path / "out", merge=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert getattr(model.config, "quantization_config", None) is None
    torch.testing.assert_close(
        ours, scores_of_transformers(model, tmp_path / "out", batch), rtol=1e-2, atol=1e-2
    )
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())
    assert torch.equal(scores(backbone, batch), ours)


def test_merging_a_bfloat16_base_stays_near(
    make: MakeBackbone, batch: BranchedBatch, tmp_path: Path
):
    backbone = reward_model(make, lora=LORA, dtype="bfloat16")
    export_reward(backbone, tmp_path / "out", merge=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    theirs = scores_of_transformers(model, tmp_path / "out", batch)
    torch.testing.assert_close(
        scores(backbone, batch), theirs, rtol=BF16["rtol"], atol=3 * BF16["atol"]
    )


@pytest.mark.parametrize("lm_head", [True, False])
def test_a_trunk_alone_is_exported_too(
    make: MakeBackbone, batch: BranchedBatch, tmp_path: Path, lm_head: bool
):
    backbone = reward_model(make, lm_head=lm_head)
    export_reward(backbone, tmp_path / "out", merge=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        scores(backbone, batch),
        scores_of_transformers(model, tmp_path / "out", batch),
        **FP32_MODEL,
    )


def greedy(model: Any, ids: Tensor, **options: Any):
    return model.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        **options,
    )


def greedy_of_ours(backbone: Backbone, ids: Tensor):
    with torch.no_grad(), backbone.use_role("policy"):
        for _ in range(12):
            logits = backbone.logits(backbone.decoder(input_ids=ids).last_hidden_state[:, -1])
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            if int(ids[0, -1]) in backbone.eos_token_ids:
                break
    return ids


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_policy_generates_the_same_greedy_text(
    make: MakeBackbone, model_dirs: dict[str, Path], tmp_path: Path, architecture: str, merge: bool
):
    backbone = make(name=str(model_dirs[architecture]), lora=LORA)
    backbone.add_adapter("policy")
    shake(backbone, "policy")
    export_policy(backbone, tmp_path / "out", merge=merge)
    loader = AutoModelForCausalLM if merge else AutoPeftModelForCausalLM
    model = loader.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("the film in", return_tensors="pt")["input_ids"]
    ours = greedy_of_ours(backbone, ids)
    assert greedy(model, ids).tolist() == ours.tolist()
    base = AutoModelForCausalLM.from_pretrained(model_dirs[architecture])
    assert greedy(base, ids).tolist() != ours.tolist()


def test_full_policy_and_tied_weights(make: MakeBackbone, tiny_model_dir: Path, tmp_path: Path):
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
    }
    config |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    backbone = Backbone.load(ModelSpec(config=config, tokenizer=str(tiny_model_dir)))
    export_policy(backbone, tmp_path / "out", merge=True)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[40, 41, 42]])
    assert greedy(model, ids).tolist() == greedy_of_ours(backbone, ids).tolist()


def test_tokenizer_template_and_card_come_along(make: MakeBackbone, tmp_path: Path):
    backbone = reward_model(make, lora=LORA)
    backbone.add_adapter("policy")
    export_policy(backbone, tmp_path / "policy", merge=True)
    export_reward(backbone, tmp_path / "reward", merge=False, score_mean=0.125)
    loaded = load_tokenizer(str(tmp_path / "policy"))
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(backbone.tokenizer)
    assert loaded.chat_template == backbone.tokenizer.chat_template
    policy, reward = ((tmp_path / name / "README.md").read_text() for name in ("policy", "reward"))
    assert "library_name: transformers" in policy
    assert "AutoModelForCausalLM.from_pretrained" in policy
    assert "library_name: peft" in reward
    assert "PeftModel.from_pretrained" in reward
    assert "mean 0.125" in reward


def test_the_way_a_card_shows_runs(make: MakeBackbone, tmp_path: Path):
    backbone = reward_model(make, lora=LORA)
    export_reward(backbone, tmp_path / "out", merge=False)
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    namespace: dict[str, object] = {}
    exec(code.replace("<this directory>", str(tmp_path / "out")), namespace)
    assert isinstance(namespace["model"], PeftModel)


class TestWriting:
    def test_an_earlier_export_is_replaced(self, make: MakeBackbone, tmp_path: Path):
        backbone = make()
        export_policy(backbone, tmp_path / "out", merge=True)
        (tmp_path / "out" / "stale").write_text("")
        export_policy(backbone, tmp_path / "out", merge=True)
        assert not (tmp_path / "out" / "stale").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_something_else_is_never_overwritten(self, make: MakeBackbone, tmp_path: Path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(CheckpointError, match="exists and is no earlier one"):
            export_policy(make(), tmp_path, merge=True)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    def test_a_failure_leaves_the_last_export_and_no_rubbish(self, tmp_path: Path):
        with whole_directory(tmp_path / "out", RECORD) as directory:
            (directory / "lit_rlhf.json").write_text("{}")
        with (
            pytest.raises(ZeroDivisionError),
            whole_directory(tmp_path / "out", RECORD) as directory,
        ):
            (directory / "half").write_text(str(1 / 0))
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["lit_rlhf.json"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize(
        "torn", ["model.safetensors", "adapter_model.safetensors", "config.json", "tokenizer.json"]
    )
    def test_a_full_disk_is_named_and_leaves_the_last_export(
        self, make: MakeBackbone, tmp_path: Path, torn: str
    ):
        backbone = make(lora=LORA)
        backbone.add_adapter("policy")
        merge = "adapter" not in torn and torn != "tokenizer.json"
        export_policy(backbone, tmp_path / "out", merge=merge)
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        with largest_file(len(before[torn]) - 1), pytest.raises(CheckpointError) as caught:
            export_policy(backbone, tmp_path / "out", merge=merge)
        needed = (
            r"File too large\. \d+ MiB are free there; this one needs about \d+\. "
            r"What was there before is untouched"
        )
        assert re.search(
            rf"The export {tmp_path}/out can't be written: {needed}", str(caught.value)
        )
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("kind", ["float", "nf4", "adapter"])
    def test_the_size_that_a_full_disk_is_told_is_that_of_the_weights(
        self, make: MakeBackbone, tmp_path: Path, kind: str
    ):
        backbone = make(lora=LORA, quantization="nf4" if kind == "nf4" else "none")
        backbone.add_adapter("policy")
        export_policy(backbone, tmp_path, merge=kind != "adapter")
        (weights,) = tmp_path.glob("*.safetensors")
        expected = sum(tensor.nbytes for tensor in load_file(weights).values())
        assert _size(backbone, "policy", kind == "adapter") == expected

    def test_a_failure_to_move_it_in_place_puts_the_last_export_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with whole_directory(tmp_path / "out", RECORD) as directory:
            (directory / "lit_rlhf.json").write_text("{}")
        rename = Path.rename

        def failing(self: Path, target: Path) -> Path:
            if ".old." not in self.name and target.name == "out":
                raise PermissionError(13, "Permission denied")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", failing)
        monkeypatch.setattr(files, "_exchange", lambda *paths: False)  # as on NFS
        with (
            pytest.raises(FileError, match="out can't be written: Permission denied"),
            whole_directory(tmp_path / "out", RECORD),
        ):
            pass
        assert (tmp_path / "out" / "lit_rlhf.json").read_text() == "{}"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_unknown_head_is_named(self, make: MakeBackbone, tmp_path: Path):
        with pytest.raises(ConfigurationError, match="no head 'reward' to export"):
            export_reward(make(), tmp_path / "out", merge=True)
