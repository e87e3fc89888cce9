from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import GenerationConfig

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.rollout import HFEngine, NativeEngine, RolloutEngine, Sampling
from lit_rlhf.types import Prompts
from tests.reference.generations import make_backbone, make_prompts, make_request, sequences
from tests.tolerances import FP32_MODEL

STOPS = list(range(60, 110))


@pytest.fixture(scope="module")
def backbone(tiny_model_dir: Path) -> Backbone:
    return Backbone.load(ModelSpec(name=str(tiny_model_dir)))


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"min_new_tokens": 4},
    ],
)
def test_it_draws_what_the_native_engine_draws(
    backbone: Backbone, options: dict[str, float], num_samples: int
) -> None:
    sampling = Sampling(max_new_tokens=12, stop_token_ids=STOPS, **options)  # type: ignore[arg-type]
    request = make_request(sampling, num_samples)
    ours = HFEngine().generate(backbone, request)
    native = NativeEngine().generate(backbone, request)
    assert sequences(ours) == sequences(native)
    assert ours.logprobs is not None
    assert native.logprobs is not None
    torch.testing.assert_close(ours.logprobs, native.logprobs, **FP32_MODEL)
    assert torch.equal(ours.tokens, native.tokens)
    assert torch.equal(ours.mask, native.mask)


def test_a_completion_does_not_depend_on_the_batch_nor_on_global_generators(
    backbone: Backbone,
) -> None:
    ids, mask = make_prompts()
    whole = make_request(Sampling(max_new_tokens=8, stop_token_ids=STOPS))
    before = torch.get_rng_state()
    together = sequences(HFEngine().generate(backbone, whole))
    two = replace(whole, prompts=Prompts(ids[2:4], mask[2:4]), seeds=whole.seeds[2:4])
    part = HFEngine().generate(backbone, two)
    assert sequences(part) == together[2:4]
    assert torch.equal(before, torch.get_rng_state())


def test_penalties_in_the_models_own_generation_config_are_left_out(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    request = make_request(Sampling(max_new_tokens=8))
    plain = HFEngine().generate(backbone, request)
    config = GenerationConfig(
        repetition_penalty=5.0, min_new_tokens=3, top_k=2, do_sample=True, temperature=0.1
    )
    backbone.model.generation_config = config
    again = HFEngine().generate(backbone, request)
    assert sequences(again) == sequences(plain)
    assert backbone.model.generation_config is config


def test_it_serves_architectures_that_the_native_engine_refuses(tiny_model_dir: Path) -> None:
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    backbone = make_backbone(tiny_model_dir, model_type="mistral", sliding_window=4, **config)
    out = HFEngine().generate(backbone, make_request(Sampling(max_new_tokens=6)))
    assert out.tokens.shape == (6, 6)


def test_a_role_samples_from_its_own_adapter_and_flags_are_restored(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)))
    backbone.add_adapter("policy")
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    backbone.train()
    found = [
        sequences(engine.generate(backbone, make_request(Sampling(max_new_tokens=6), role=role)))
        for engine in (HFEngine(), NativeEngine())
        for role in ("policy", "reference")
    ]
    assert found[0] != found[1]
    assert found[:2] == found[2:]
    assert backbone.training


def test_a_model_without_lm_head_is_refused(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)), lm_head=False)
    with pytest.raises(ConfigurationError, match="can't generate"):
        HFEngine().generate(backbone, make_request(Sampling()))
    with pytest.raises(ConfigurationError, match="LM head"):
        NativeEngine().generate(backbone, make_request(Sampling()))


def test_a_prompt_that_exceeds_the_context_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigurationError, match="need 607 positions; the model has 512"):
        HFEngine().generate(backbone, make_request(Sampling(max_new_tokens=600)))


def test_engines_and_sampling_are_made_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--engine", type=RolloutEngine)
    parser.add_argument("--sampling", type=Sampling)
    config = parser.parse_object(
        {
            "engine": {
                "class_path": "lit_rlhf.rollout.NativeEngine",
                "init_args": {"max_batch_size": 16},
            },
            "sampling": {"max_new_tokens": 8, "stop_token_ids": [3]},
        }
    )
    made = parser.instantiate(config)
    assert isinstance(made.engine, NativeEngine)
    assert made.engine.max_batch_size == 16
    assert made.sampling == Sampling(max_new_tokens=8, stop_token_ids=[3])
