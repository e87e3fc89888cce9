"""From a spec to a model: what is read, what is drawn, what is switched off, and what is refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.functional.numerics import LogitShape
from lit_rlhf.internals.torch import OperatorMode
from lit_rlhf.internals.transformers import drawn_once
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.checks import product_dtype
from lit_rlhf.models.loading import load_model, prepare_modules, quantization_config
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import BranchedBatch
from tests.reference import architectures
from tests.tolerances import FP32_MODEL
from tests.unit.models.conftest import GEMMA2, GPT2, MakeBackbone

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def from_config(tokenizer: Path, config: dict[str, Any], **options: Any):
    return Backbone.load(ModelSpec(config=config, tokenizer=str(tokenizer), **options))


def test_properties(make: MakeBackbone, tiny_model_dir: Path):
    backbone = make()
    tokenizer = backbone.tokenizer
    assert (backbone.hidden_size, backbone.device) == (32, torch.device("cpu"))
    assert backbone.pad_token_id == tokenizer.pad_token_id
    assert backbone.eos_token_ids == (tokenizer.eos_token_id,)
    assert not backbone.has_lora
    assert backbone.adapters == ()
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_eos_ids_are_gathered_from_generation_config_config_and_tokenizer(
    tiny_model_dir: Path, tmp_path: Path
):
    path = shutil.copytree(tiny_model_dir, tmp_path / "model")
    generation = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [2, 9]}))
    assert Backbone.load(ModelSpec(name=str(path))).eos_token_ids == (2, 9)


def test_random_weights_depend_on_init_seed_alone(tiny_model_dir: Path):
    torch.manual_seed(5)
    first = from_config(tiny_model_dir, LLAMA)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    again, other = (
        from_config(tiny_model_dir, LLAMA),
        from_config(tiny_model_dir, LLAMA, init_seed=1),
    )
    torch.manual_seed(5)
    assert torch.equal(
        torch.get_rng_state(), state
    )  # nothing was drawn from the caller's generator
    weights = [b.decoder.layers[0].mlp.up_proj.weight for b in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.model.config.vocab_size == len(first.tokenizer)


class Draws(OperatorMode):
    """Counts the random numbers that are drawn."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawing = func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        if drawing and not args[0].is_meta:
            self.count += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [LLAMA, {**LLAMA, "tie_word_embeddings": True}])
def test_each_weight_is_drawn_once(tiny_model_dir: Path, config: dict[str, Any]):
    with Draws() as draws:
        model = load_model(ModelSpec(config=config, tokenizer=str(tiny_model_dir)))[0]
    assert draws.count == sum(p.numel() for p in model.parameters() if p.std() > 0)


FAMILIES = (
    "llama",
    "gpt2",
    "openai-gpt",
    "mixtral",
    "opt",
    "gptj",
    "falcon",
    "bloom",
    "gemma3_text",
)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_weight_is_left_undrawn(model_type: str):
    config = architectures.tiny_config(model_type)
    torch.use_deterministic_algorithms(True)  # then new memory is filled with nan
    try:
        model = drawn_once(lambda: AutoModelForCausalLM.from_config(config), torch.device("cpu"))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_that_of_the_base_and_heads_stay_float32(make: MakeBackbone, dtype: str):
    backbone = make(dtype=dtype)
    backbone.add_head("reward")
    assert {p.dtype for p in backbone.model.parameters()} == {getattr(torch, dtype)}
    assert backbone.heads["reward"].weight.dtype == torch.float32


def test_dropout_is_off_in_training_mode(tiny_model_dir: Path, batch: BranchedBatch):
    backbone = from_config(tiny_model_dir, GPT2)
    assert all(m.p == 0 for m in backbone.modules() if isinstance(m, torch.nn.Dropout))
    assert backbone.model.config.attn_pdrop == backbone.model.config.resid_pdrop == 0
    first, second = (backbone(batch, num_branches=2, logprobs=True).logprobs for _ in range(2))
    assert torch.equal(first, second)
    stubborn = torch.nn.Dropout(0.5)  # whose rate no config knows
    backbone.model.stubborn = stubborn
    backbone.model.attention_dropout = 0.5
    prepare_modules(backbone.model)
    assert stubborn.p == backbone.model.attention_dropout == 0


@pytest.mark.parametrize("config", [GEMMA2, GPT2, LLAMA], ids=lambda c: c["model_type"])
def test_logits_are_the_models_own(
    tiny_model_dir: Path, batch: BranchedBatch, config: dict[str, Any]
):
    backbone = from_config(tiny_model_dir, config)
    ids = batch["input_ids"]
    with torch.no_grad():
        ours = backbone.logits(backbone.decoder(input_ids=ids).last_hidden_state)
        torch.testing.assert_close(ours, backbone.model(input_ids=ids).logits, **FP32_MODEL)
    assert ours.dtype == torch.float32


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "model_type": "cohere", "logit_scale": 0.25},
        {**LLAMA, "model_type": "granite", "logits_scaling": 4.0},
        {**LLAMA, "model_type": "qwen3", "head_dim": 8},
        {**LLAMA, "model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 2.0},
        {**LLAMA, "model_type": "phi"},
    ],
    ids=lambda c: c["model_type"],
)
def test_scaled_capped_and_biased_logits(
    tiny_model_dir: Path, batch: BranchedBatch, config: dict[str, Any]
):
    backbone = from_config(tiny_model_dir, config)
    backbone.model.get_output_embeddings().weight.data.normal_()
    if backbone.model.get_output_embeddings().bias is not None:
        backbone.model.get_output_embeddings().bias.data.normal_()
    ids = batch["input_ids"][:1, :8]
    out = backbone(batch, num_branches=2, logprobs=True)
    theirs = backbone.model(input_ids=ids).logits.float().log_softmax(-1)
    picked = theirs[0, 4:7].gather(-1, ids[0, 5:, None]).squeeze(-1)
    torch.testing.assert_close(out.logprobs[0, :3], picked, **FP32_MODEL)


def test_logits_computed_in_an_unknown_way_are_refused(tiny_model_dir: Path):
    config = {**LLAMA, "model_type": "cohere", "logit_scale": 4.0}
    from_config(tiny_model_dir, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_rlhf.models.lm_head.LogitShape", lambda **_: LogitShape())
        with pytest.raises(
            ConfigurationError,
            match=r"CohereForCausalLM computes logits .* in a way that isn't known",
        ):
            from_config(tiny_model_dir, config)


def test_tied_embeddings_stay_tied_and_train(tiny_model_dir: Path, batch: BranchedBatch):
    backbone = from_config(tiny_model_dir, {**LLAMA, "tie_word_embeddings": True})
    head, embeddings = (
        backbone.model.get_output_embeddings().weight,
        backbone.model.get_input_embeddings().weight,
    )
    assert head is embeddings
    backbone(batch, num_branches=2, logprobs=True).logprobs.sum().backward()
    assert embeddings.grad.abs().sum() > 0


def test_without_lm_head_the_trunk_alone_is_loaded(make: MakeBackbone, batch: BranchedBatch):
    backbone, whole = make(lm_head=False), make()
    assert not any("lm_head" in name for name, _ in backbone.named_parameters())
    for model in (backbone, whole):
        model.add_head("reward")
    ours, theirs = (
        model(batch, num_branches=2, scores="reward").scores for model in (backbone, whole)
    )
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


class TestRefused:
    def refused(self, message: str, **options: Any):
        with pytest.raises(ConfigurationError, match=message):
            Backbone.load(ModelSpec(**options))

    def test_neither_name_nor_config(self):
        self.refused("either `name` .* or `config` .*; neither is given")

    def test_both(self, tiny_model_dir: Path):
        self.refused("both is given", name=str(tiny_model_dir), config=LLAMA)

    def test_config_without_tokenizer(self):
        self.refused("A model from `config` has no tokenizer", config=LLAMA)

    def test_missing_directory(self):
        self.refused("directory '/no/such/model' doesn't exist", name="/no/such/model")

    def test_relative_directory(self):
        self.refused("directory './nowhere' doesn't exist \\(looked in", name="./nowhere")

    def test_hub_id_offline(self):
        self.refused(
            r"No such directory \(looked in .*\)\. It was taken for a hub id",
            name="someone/nothing",
        )

    def test_directory_without_tokenizer(self, tiny_model_dir: Path, tmp_path: Path):
        AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
        self.refused("Can't load the tokenizer .* tokenizer.json is missing", name=str(tmp_path))

    def test_directory_without_model(self, tmp_path: Path):
        make_tokenizer().save_pretrained(tmp_path)
        self.refused("Can't load the model .* config.json is missing", name=str(tmp_path))

    def test_torn_weights(self, tiny_model_dir: Path, tmp_path: Path):
        path = shutil.copytree(tiny_model_dir, tmp_path / "torn")
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
        self.refused("Can't load the model", name=str(path))

    def test_incomplete_weights(self, tiny_model_dir: Path, tmp_path: Path):
        path = shutil.copytree(tiny_model_dir, tmp_path / "incomplete")
        state = load_file(path / "model.safetensors")
        state.pop("model.layers.1.mlp.up_proj.weight")
        save_file(state, path / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            CheckpointError, match=r"1 tensors are missing .first: ..model.layers.1.mlp.up_proj"
        ):
            Backbone.load(ModelSpec(name=str(path)))

    def test_unknown_model_type(self, tiny_model_dir: Path):
        config = {"model_type": "lama"}
        self.refused(
            "config.model_type='lama' is no model", config=config, tokenizer=str(tiny_model_dir)
        )

    def test_unknown_model_type_in_a_directory(self, tiny_model_dir: Path, tmp_path: Path):
        path = shutil.copytree(tiny_model_dir, tmp_path / "odd")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
        self.refused("Can't load the .* `lama`", name=str(path), tokenizer=str(tiny_model_dir))

    def test_misspelt_config_option(self, tiny_model_dir: Path):
        config = {**LLAMA, "hiden_size": 32}
        self.refused(
            "config.hiden_size is no option .* Did you mean 'hidden_size'",
            config=config,
            tokenizer=str(tiny_model_dir),
        )

    def test_impossible_config(self, tiny_model_dir: Path):
        config = {**LLAMA, "num_attention_heads": 5}
        self.refused("Can't build a model of config", config=config, tokenizer=str(tiny_model_dir))

    def test_tokenizer_larger_than_the_vocabulary(self, tiny_model_dir: Path):
        config = {**LLAMA, "vocab_size": 100}
        self.refused(
            "has 267 tokens, but the model embeds only 100",
            config=config,
            tokenizer=str(tiny_model_dir),
        )

    def test_remote_code(self, tiny_model_dir: Path, tmp_path: Path):
        path = shutil.copytree(tiny_model_dir, tmp_path / "remote")
        config = json.loads((path / "config.json").read_text())
        config |= {
            "model_type": "mine",
            "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
        }
        (path / "config.json").write_text(json.dumps(config))
        (path / "mine.py").write_text("raise SystemExit('remote code was run')")
        self.refused(
            "comes with code of its own, which runs only with trust_remote_code: true",
            name=str(path),
            tokenizer=str(tiny_model_dir),
        )


def test_random_weights_are_drawn_on_cpu_and_moved(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = ModelSpec(config=LLAMA, tokenizer=str(tiny_model_dir))
    expected = load_model(spec)[0].state_dict()
    moved: list[torch.device] = []

    def move(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
        moved.append(device)
        return model

    gpu = torch.device("cuda")
    monkeypatch.setattr(torch, "get_default_device", lambda: gpu)
    monkeypatch.setattr(PreTrainedModel, "to", move)
    with torch.device("meta"):  # stands for a GPU: what is made there holds no numbers
        found = load_model(spec)[0].state_dict()
    assert moved == [gpu]
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(
    ("device", "native", "dtype"),
    [
        ("cpu", True, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float32),
    ],
)
def test_four_bits_are_computed_in_bfloat16_on_gpus_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, dtype: torch.dtype
):
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    config = quantization_config(ModelSpec(name="x", quantization="nf4"))
    assert config is not None and config.bnb_4bit_compute_dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_capped_logits_are_held_to_the_rounding_of_the_weights(
    tiny_model_dir: Path, dtype: str
):
    config = {**GEMMA2, "initializer_range": 1.0, "final_logit_softcapping": 30.0}
    backbone = from_config(tiny_model_dir, config, dtype=dtype)
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.arange(8)[None]).logits
    assert float(logits.abs().max()) > 5


def test_products_rounded_to_tf32_are_held_to_its_bits():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert product_dtype(torch.float32) == torch.float16
        assert product_dtype(torch.bfloat16) == torch.bfloat16
    finally:
        torch.set_float32_matmul_precision(before)
    assert product_dtype(torch.float32) == torch.float32


def test_threads_load_one_after_another(tiny_model_dir: Path) -> None:
    tied = {"config": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}}
    made = ModelSpec(**tied, tokenizer=str(tiny_model_dir))
    specs = [ModelSpec(name=str(tiny_model_dir)), made] * 8
    tie, normal = PreTrainedModel.tie_weights, torch.nn.init.normal_
    with ThreadPoolExecutor(4) as threads:
        models = [model for model, _ in threads.map(load_model, specs)]
    assert PreTrainedModel.tie_weights is tie, "a thread has put back what another had put there"
    assert torch.nn.init.normal_ is normal
    for model in models[1::2]:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
