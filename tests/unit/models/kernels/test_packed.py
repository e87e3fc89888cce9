"""Packed decoding gives what the decoder's own forward gives, and stands back where it can't."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.internals.torch import laid_out_linear, multiplies_bfloat16
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, evaluating
from lit_rlhf.models.kernels.packed import PackedStep, packable
from lit_rlhf.rollout import NativeEngine, Sampling
from lit_rlhf.rollout.native import prefill
from lit_rlhf.rollout.steps import DecodeStep, ModelStep, choose_step
from tests.reference.generations import make_prompts, make_request
from tests.tolerances import BF16, FP32_MODEL
from tests.walks import walk

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.2,
}  # fmt: skip
KINDS = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"head_dim": 24},
    "qwen2": {},  # biases of queries, keys and values alone
    "qwen3": {"head_dim": 32},  # normalised queries and keys
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(
    tokenizer: Path, kind: str = "llama", dtype: Any = "float32", lora: LoraSpec | None = None
) -> Backbone:
    config = {"model_type": kind, **SMALL, **KINDS[kind]}
    backbone = Backbone.load(
        ModelSpec(config=config, tokenizer=str(tokenizer), dtype=dtype, lora=lora)
    )
    if lora is not None:
        backbone.add_adapter("policy")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name or name.endswith("bias") or "norm" in name:  # which start at 0 or 1
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone


@torch.no_grad()
def trajectory(
    backbone: Backbone, kind: type[DecodeStep], role: str = "policy"
) -> tuple[torch.Tensor, torch.Tensor]:
    """States and logits of a few given tokens, with rows leaving in between."""
    ids, mask = make_prompts()
    fed = torch.randint(6, 260, (5, 12), generator=torch.Generator().manual_seed(2))
    states, logits = [], []
    with evaluating(backbone), backbone.use_role(role):
        _, cache = prefill(backbone, ids, mask.sum(-1), 2)
        packed = kind is PackedStep
        step = PackedStep(backbone.model, backbone.logits) if packed else ModelStep(backbone)
        rows = torch.arange(12)
        for index, tokens in enumerate(fed):
            if index == 2:
                rows = torch.tensor([0, 3, 4, 7, 9])
                cache.select(rows)
            cache.make_room(4)
            hidden, scored = step(tokens[rows], cache)
            cache.advance()
            states.append(hidden)
            logits.append(scored)
    return torch.cat(states), torch.cat(logits)


@pytest.mark.parametrize("kind", list(KINDS))
def test_states_and_logits_are_those_of_the_decoders_own_forward(
    tiny_model_dir: Path, kind: str
) -> None:
    backbone = make(tiny_model_dir, kind)
    assert packable(backbone.model)
    ours, theirs = trajectory(backbone, PackedStep), trajectory(backbone, ModelStep)
    assert_close(ours[0], theirs[0], **FP32_MODEL)
    assert_close(ours[1], theirs[1], **FP32_MODEL)


@pytest.mark.parametrize(
    "targets", [ALL, ["q_proj", "v_proj"], ["k_proj", "down_proj"], ["up_proj"]]
)
@pytest.mark.parametrize("role", ["policy", "reference"])
def test_adapters_count_in_the_layers_and_roles_that_have_them(
    tiny_model_dir: Path, targets: list[str], role: str
) -> None:
    backbone = make(
        tiny_model_dir, "qwen2", lora=LoraSpec(rank=3, alpha=5.0, target_modules=targets)
    )
    ours, theirs = trajectory(backbone, PackedStep, role), trajectory(backbone, ModelStep, role)
    assert_close(ours[1], theirs[1], **FP32_MODEL)
    other = trajectory(backbone, PackedStep, "reference" if role == "policy" else "policy")
    assert (other[1] - ours[1]).abs().max() > 0.1


def test_adapters_of_different_rank_stand_beside_each_other(tiny_model_dir: Path) -> None:
    backbone = make(tiny_model_dir, lora=LoraSpec(rank=4, target_modules=["q_proj"]))
    backbone.add_adapter(
        "other", lora=LoraSpec(rank=2, target_modules=["q_proj", "k_proj", "gate_proj"])
    )
    for name, parameter in backbone.named_parameters():
        if "lora_B.other" in name:
            parameter.data.fill_(0.3)
    for role in ("policy", "other"):
        assert_close(
            trajectory(backbone, PackedStep, role),
            trajectory(backbone, ModelStep, role),
            **FP32_MODEL,
        )


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4, alpha=8.0, target_modules=ALL)])
def test_bfloat16_is_as_near_to_float32_as_the_decoders_own_forward(
    tiny_model_dir: Path, lora: LoraSpec | None
) -> None:
    backbone = make(tiny_model_dir, dtype="bfloat16", lora=lora)
    ours, theirs = trajectory(backbone, PackedStep)[1], trajectory(backbone, ModelStep)[1]
    exact = make(tiny_model_dir, lora=lora)
    for parameter, rounded in zip(exact.parameters(), backbone.parameters(), strict=True):
        parameter.data.copy_(rounded)
    wanted = trajectory(exact, ModelStep)[1]
    assert (ours - wanted).square().mean() < 1.1 * (theirs - wanted).square().mean()
    assert_close(ours.log_softmax(-1).mean(), wanted.log_softmax(-1).mean(), **BF16)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(
            torch.bfloat16,
            BF16,
            marks=pytest.mark.skipif(
                not multiplies_bfloat16(), reason="no bfloat16 kernels of oneDNN on this CPU"
            ),
        ),
        (torch.float32, FP32_MODEL),
    ],
)
def test_a_product_laid_out_by_onednn_is_the_plain_one(
    dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    bias = torch.randn(96, generator=generator).to(dtype)
    product = laid_out_linear(weight, bias, 64)
    assert not isinstance(product, partial)
    for rows in (1, 7, 64, 100):
        x = torch.randn(rows, 64, generator=generator).to(dtype)
        assert_close(product(x), torch.nn.functional.linear(x, weight, bias), **tolerance)


def test_other_processors_multiply_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert isinstance(laid_out_linear(torch.ones(4, 3), None, 64), partial)


def generate(backbone: Backbone, engine: NativeEngine, new_tokens: int = 8) -> torch.Tensor:
    return engine.generate(backbone, make_request(Sampling(max_new_tokens=new_tokens))).tokens


def test_the_engine_packs_unless_told_not_to(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make(tiny_model_dir)
    generate(backbone, NativeEngine())  # with the first rollout its arithmetic is checked
    made = []
    before = PackedStep.__init__
    monkeypatch.setattr(
        PackedStep, "__init__", lambda self, *given: (made.append(0), before(self, *given))[1]
    )
    packed = generate(backbone, NativeEngine())
    assert len(made) == 1
    backbone.spec.kernels = "plain"
    assert torch.equal(generate(backbone, NativeEngine()), packed)
    backbone.spec.kernels = "auto"
    generate(backbone, NativeEngine(), new_tokens=3)  # not worth it
    assert len(made) == 1
    generate(
        backbone, NativeEngine(max_batch_size=2), new_tokens=3
    )  # three batches, packed once for all
    assert len(made) == 2


def test_weights_that_have_been_trained_meanwhile_are_packed_anew(tiny_model_dir: Path) -> None:
    backbone, engine = make(tiny_model_dir), NativeEngine()
    before = generate(backbone, engine)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.3)
    after = generate(backbone, engine)
    assert not torch.equal(before, after)
    backbone.spec.kernels = "plain"
    assert torch.equal(after, generate(backbone, engine))


def test_what_cannot_be_packed_is_decoded_by_its_own_forward(tiny_model_dir: Path) -> None:
    spec = {"tokenizer": str(tiny_model_dir), "config": {"model_type": "llama", **SMALL}}
    nf4 = Backbone.load(ModelSpec(**spec, quantization="nf4", lora=LoraSpec(rank=2)))
    gpt2 = Backbone.load(
        ModelSpec(
            tokenizer=str(tiny_model_dir),
            config={
                "model_type": "gpt2",
                "n_embd": 32,
                "n_layer": 1,
                "n_head": 2,
                "n_positions": 64,
            },
        )
    )
    for backbone in (nf4, gpt2):
        assert isinstance(choose_step(backbone, 100), ModelStep)
    assert isinstance(choose_step(gpt2, 100, dequantize=True), ModelStep)
    assert isinstance(choose_step(make(tiny_model_dir), 100), PackedStep)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_are_dequantized_once_if_asked(
    tiny_model_dir: Path, quantization: Any
) -> None:
    spec = ModelSpec(
        tokenizer=str(tiny_model_dir),
        config={"model_type": "llama", **SMALL},
        quantization=quantization,
        lora=LoraSpec(rank=2, target_modules=ALL),
    )
    backbone = Backbone.load(spec)
    backbone.add_adapter("policy")
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    with backbone.use_role("policy"):
        assert isinstance(choose_step(backbone, 100, dequantize=True), PackedStep)
    ours, theirs = trajectory(backbone, PackedStep), trajectory(backbone, ModelStep)
    # bitsandbytes multiplies 8-bit layers in float16.
    assert_close(ours[1], theirs[1], **(FP32_MODEL if quantization == "nf4" else BF16))
    plain, dequantized = (
        generate(backbone, NativeEngine(dequantize=choice)) for choice in (False, True)
    )
    assert quantization == "int8" or torch.equal(plain, dequantized)


@pytest.mark.parametrize("kind", walk(KINDS, "llama", "qwen3"))
def test_under_autocast_weights_are_cast_once(tiny_model_dir: Path, kind: str) -> None:
    backbone = make(tiny_model_dir, kind, lora=LoraSpec(rank=3, target_modules=ALL))
    generator = torch.Generator().manual_seed(7)
    gaps = torch.zeros(2)
    for _ in range(12):
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=generator)
        exact = trajectory(backbone, ModelStep)[1]
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            ways = [trajectory(backbone, step)[1] for step in (PackedStep, ModelStep)]
        assert ways[0].dtype == torch.float32
        gaps += torch.stack([(logits - exact).square().mean() for logits in ways])
    assert gaps[0] > 1e-4  # products are in bfloat16
    assert gaps[0] < 1.4 * gaps[1]  # of one draw it is between a half and twice


@pytest.mark.parametrize("where", ["layer", "lm_head", "patched"])
def test_what_is_hooked_or_patched_in_counts(tiny_model_dir: Path, where: str) -> None:
    backbone = make(tiny_model_dir)
    generate(backbone, NativeEngine())  # with the first rollout its arithmetic is checked
    decoder: Any = backbone.decoder
    calls = []
    if where == "patched":
        forward = decoder.layers[0].mlp.forward
        decoder.layers[0].mlp.forward = lambda x: (calls.append(1), forward(x))[1]
    else:
        module = decoder.layers[0] if where == "layer" else backbone.model.get_output_embeddings()
        module.register_forward_hook(lambda *_: calls.append(1))
    generate(backbone, NativeEngine())
    assert len(calls) == 8  # the prefill and 7 steps


def test_layers_that_the_config_leaves_out_are_left_out(tiny_model_dir: Path) -> None:
    backbone = make(tiny_model_dir)
    whole = trajectory(backbone, PackedStep)[1]
    backbone.decoder.config.num_hidden_layers = 1  # type: ignore[union-attr]
    assert_close(trajectory(backbone, PackedStep), trajectory(backbone, ModelStep), **FP32_MODEL)
    assert (trajectory(backbone, PackedStep)[1] - whole).abs().max() > 0.1
