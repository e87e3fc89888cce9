"""A decode whose steps are recorded gives the tokens of one whose steps are made one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.rollout import NativeEngine, Sampling, native
from lit_rlhf.rollout.steps import RECORDED, DecodeStep, Pace, RecordedStep, choose_step
from lit_rlhf.types import Generation
from tests.reference.generations import make_prompts, make_request
from tests.tolerances import FP32_MODEL
from tests.unit.rollout.tape import TapeRecorder
from tests.walks import walk

VARIED = Sampling(max_new_tokens=24, stop_token_ids=list(range(40, 60)))
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 16, "sliding_window": 12},
    "olmo2": {},
}


def load(tokenizer: Path, kind: str, **options: Any) -> Backbone:
    config = {"model_type": kind, **SMALL, **KINDS[kind]}
    return Backbone.load(ModelSpec(config=config, tokenizer=str(tokenizer), **options))


def generate(backbone: Backbone, sampling: Sampling, samples: int) -> Generation:
    return NativeEngine().generate(backbone, make_request(sampling, samples))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """Has every decode's steps recorded, in the pace of a GPU with a small cache."""
    recorder = TapeRecorder()

    def recorded(*args: Any, **kwargs: Any) -> DecodeStep:
        return RecordedStep(choose_step(*args, **kwargs), recorder)

    monkeypatch.setattr(native, "choose_step", recorded)
    monkeypatch.setattr(native, "pace_of", lambda _: Pace(10, 3, RECORDED.worth_leaving))
    return recorder


def same(ours: Generation, theirs: Generation) -> None:
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.finished, theirs.finished)
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, **FP32_MODEL)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", walk(KINDS, "llama", "mistral"))
def test_tokens_are_those_of_steps_made_one_by_one(
    tiny_model_dir: Path, kind: str, samples: int, request: pytest.FixtureRequest
) -> None:
    backbone = load(tiny_model_dir, kind)
    plain = generate(backbone, VARIED, samples)
    recorder = request.getfixturevalue("recorder")
    same(generate(backbone, VARIED, samples), plain)
    # 24 steps in a cache that grows by 10, and rows that leave: few recordings, not one a step.
    assert 2 <= recorder.recordings <= 8


def test_adapters_and_values_are_recorded_too(
    tiny_model_dir: Path, request: pytest.FixtureRequest
) -> None:
    backbone = load(tiny_model_dir, "qwen2", lora=LoraSpec(rank=4))
    backbone.add_adapter("policy")
    backbone.add_head("value", drawn=True)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    asked = make_request(VARIED, 2, values="value")
    plain = NativeEngine().generate(backbone, asked)
    request.getfixturevalue("recorder")
    ours = NativeEngine().generate(backbone, asked)
    same(ours, plain)
    assert ours.values is not None
    assert plain.values is not None
    torch.testing.assert_close(ours.values, plain.values, **FP32_MODEL)


def test_least_tokens_nucleus_and_greedy_choices(
    tiny_model_dir: Path, request: pytest.FixtureRequest
) -> None:
    backbone = load(tiny_model_dir, "llama")
    ways = [
        Sampling(max_new_tokens=12, min_new_tokens=5, stop_token_ids=list(range(40, 200))),
        Sampling(max_new_tokens=12, top_p=0.7, temperature=0.8),
        Sampling(max_new_tokens=12, temperature=0.0),
    ]
    plain = [generate(backbone, way, 2) for way in ways]
    request.getfixturevalue("recorder")
    for way, before in zip(ways, plain, strict=True):
        same(generate(backbone, way, 2), before)


def test_what_cannot_be_recorded_is_said_and_decoded_step_by_step(
    tiny_model_dir: Path, request: pytest.FixtureRequest
) -> None:
    backbone = load(tiny_model_dir, "gemma2")
    plain = generate(backbone, VARIED, 2)
    layers: Any = backbone.decoder.layers  # type: ignore[union-attr]
    forward = layers[0].mlp.forward
    layers[0].mlp.forward = lambda x: forward(x) * max(float(x.isfinite().all()), 1.0)
    request.getfixturevalue("recorder")
    with pytest.warns(UserWarning, match="can't be recorded as a CUDA graph.*reads the device"):
        same(generate(backbone, VARIED, 2), plain)


def test_a_recording_is_not_used_for_another_cache(tiny_model_dir: Path) -> None:
    backbone = load(tiny_model_dir, "llama")
    ids, mask = make_prompts()
    recorder = TapeRecorder()
    step = RecordedStep(choose_step(backbone, 100), recorder)
    with torch.no_grad(), backbone.use_role("policy"):
        for part in (slice(0, 3), slice(3, 6)):
            decoder = native.Decoder(backbone, step, ids[part], mask[part].sum(-1), 2)
            for _ in range(3):
                decoder.advance(decoder.logits.argmax(-1))
    assert recorder.recordings == 2
