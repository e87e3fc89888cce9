from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.branches import pack_branches
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.models.kernels.packed import PackedStep
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling, native
from lit_rlhf.rollout.kv_cache import DecodeLayer
from lit_rlhf.rollout.steps import EAGER
from lit_rlhf.types import BranchedBatch, Generation, Prompts
from tests.reference import rollout as reference
from tests.reference.draws import dependences, dependences_of, draw_scores
from tests.reference.generations import (
    LENGTHS,
    make_backbone,
    make_prompts,
    make_request,
    make_seeds,
    sequences,
)
from tests.tolerances import BF16, FP32_MODEL
from tests.walks import walk

STOPS = list(
    range(60, 110)
)  # of 265 tokens: completions end after about five, each at another step
VARIED = Sampling(max_new_tokens=16, stop_token_ids=STOPS)


@pytest.fixture(scope="module")
def backbone(tiny_model_dir: Path) -> Backbone:
    """Compared with its forward already, so that no test counts those steps too."""
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    NativeEngine().check(backbone)
    return backbone


def generate(
    backbone: Backbone,
    sampling: Sampling,
    num_samples: int = 1,
    engine: NativeEngine | None = None,
    role: str = "policy",
) -> Generation:
    engine = engine or NativeEngine()
    return engine.generate(backbone, make_request(sampling, num_samples, role=role))


def training_logprobs(
    backbone: Backbone, generation: Generation, temperature: float = 1.0
) -> torch.Tensor:
    ids, mask = make_prompts()
    packed = pack_branches(ids, mask, generation.tokens, generation.mask)
    batch = BranchedBatch(**packed._asdict())  # type: ignore[typeddict-item]
    with torch.no_grad():
        out = backbone(
            batch,
            num_branches=len(generation.tokens) // len(ids),
            role="policy",
            logprobs=True,
            temperature=temperature,
        )
    assert out.logprobs is not None
    return out.logprobs


# -- what is generated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"top_k": 10, "top_p": 0.8, "temperature": 1.3},
        {"min_new_tokens": 4},
    ],
)
def test_completions_equal_one_sequence_at_a_time_without_a_cache(
    backbone: Backbone, options: dict[str, float], num_samples: int
) -> None:
    ids, mask = make_prompts()
    sampling = Sampling(max_new_tokens=10, stop_token_ids=STOPS, **options)  # type: ignore[arg-type]
    ours = generate(backbone, sampling, num_samples)
    ends = [*backbone.eos_token_ids, *STOPS]
    seeds = make_seeds(len(ids) * num_samples).tolist()
    found = sequences(ours)
    for row, seed in enumerate(seeds):
        prompt = ids[row // num_samples][mask[row // num_samples]].tolist()
        wanted = reference.complete(backbone.model, prompt, seed, 10, ends, **options)  # type: ignore[arg-type]
        assert found[row] == (wanted.tokens, wanted.finished)
        assert ours.logprobs is not None
        torch.testing.assert_close(
            ours.logprobs[row][ours.mask[row]], torch.tensor(wanted.logprobs), **FP32_MODEL
        )


def test_greedy_equals_transformers_greedy(backbone: Backbone) -> None:
    ids, _mask = make_prompts()
    ours = generate(backbone, Sampling(max_new_tokens=12, temperature=0))
    for row, length in enumerate(LENGTHS):
        theirs = backbone.model.generate(
            ids[row : row + 1, :length], do_sample=False, max_new_tokens=12
        )
        assert ours.tokens[row][ours.mask[row]].tolist() == theirs[0, length:].tolist()


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_those_of_a_training_forward(
    backbone: Backbone, num_samples: int, temperature: float
) -> None:
    ours = generate(
        backbone,
        Sampling(max_new_tokens=16, temperature=temperature, stop_token_ids=STOPS),
        num_samples,
    )
    wanted = training_logprobs(backbone, ours, temperature)
    assert ours.logprobs is not None
    torch.testing.assert_close(ours.logprobs, wanted, **FP32_MODEL)


def test_tokens_mask_and_logprobs_say_the_same_about_where_a_row_ends(backbone: Backbone) -> None:
    ours = generate(backbone, VARIED, num_samples=4)
    assert ours.logprobs is not None
    lengths = ours.mask.sum(-1)
    assert torch.equal(ours.mask, torch.arange(ours.mask.shape[1]) < lengths[:, None])
    assert (ours.tokens[~ours.mask] == backbone.pad_token_id).all()
    assert (ours.logprobs[~ours.mask] == 0).all()
    assert (ours.logprobs[ours.mask] < 0).all()
    assert ours.mask.shape[1] == lengths.max()
    ends = torch.tensor([*backbone.eos_token_ids, *STOPS])
    last = ours.tokens.gather(-1, lengths[:, None] - 1)[:, 0]
    assert torch.equal(torch.isin(last, ends), ours.finished)
    before_last = ours.mask & (torch.arange(ours.mask.shape[1]) < lengths[:, None] - 1)
    assert not torch.isin(ours.tokens[before_last], ends).any()
    assert (lengths[~ours.finished] == 16).all()
    assert len(set(lengths.tolist())) > 4  # the test would show nothing if all rows ended at once


def test_the_length_limit_leaves_rows_unfinished(backbone: Backbone) -> None:
    ours = generate(backbone, Sampling(max_new_tokens=2))
    assert ours.tokens.shape == (6, 2)
    assert not ours.finished.any()


def test_eos_ends_a_row_without_any_stop_token(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate(backbone, Sampling(max_new_tokens=6))
    monkeypatch.setattr(backbone, "eos_token_ids", (int(plain.tokens[2, 3]),))
    ours = generate(backbone, Sampling(max_new_tokens=6))
    assert bool(ours.finished[2])
    assert ours.mask[2].sum() <= 4


def test_no_end_before_the_least_number_of_tokens(backbone: Backbone) -> None:
    sampling = Sampling(max_new_tokens=8, min_new_tokens=5, stop_token_ids=STOPS)
    assert generate(backbone, sampling, num_samples=4).mask.sum(-1).min() >= 6


# -- what it must not depend on
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_completion_depends_on_its_prompt_and_seed_alone(
    backbone: Backbone, num_samples: int
) -> None:
    ids, mask = make_prompts()
    seeds = make_seeds(6 * num_samples).view(6, -1)
    together = sequences(generate(backbone, VARIED, num_samples))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    prompts = Prompts(ids[order], mask[order])
    request = RolloutRequest(prompts, VARIED, seeds[order].flatten(), num_samples)
    moved = sequences(NativeEngine().generate(backbone, request))
    for place, prompt in enumerate(order.tolist()):
        for sample in range(num_samples):
            assert moved[place * num_samples + sample] == together[prompt * num_samples + sample]
    for prompt, length in enumerate(LENGTHS):
        one = Prompts(ids[[prompt], :length], mask[[prompt], :length])
        request = RolloutRequest(one, VARIED, seeds[prompt][-1:])
        alone = NativeEngine().generate(backbone, request)
        assert sequences(alone)[0] == together[prompt * num_samples + num_samples - 1]


@pytest.mark.parametrize("size", [1, 2, 5, 7, 100])
def test_splitting_the_batch_changes_nothing(backbone: Backbone, size: int) -> None:
    whole, split = (
        generate(backbone, VARIED, 3),
        generate(backbone, VARIED, 3, NativeEngine(max_batch_size=size)),
    )
    assert sequences(split) == sequences(whole)
    assert split.logprobs is not None
    assert whole.logprobs is not None
    torch.testing.assert_close(split.logprobs, whole.logprobs, **FP32_MODEL)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("eagerness", [0, 1_000_000])
def test_when_finished_rows_leave_changes_nothing(
    backbone: Backbone, num_samples: int, eagerness: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = sequences(generate(backbone, VARIED, num_samples))
    # 0: never; else as soon as one has finished
    monkeypatch.setattr(native, "pace_of", lambda _: EAGER._replace(worth_leaving=eagerness))
    assert sequences(generate(backbone, VARIED, num_samples)) == usual


def test_finished_rows_do_leave_the_batch(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    step = PackedStep.__call__
    monkeypatch.setattr(
        PackedStep,
        "__call__",
        lambda self, tokens, cache: (sizes.append(len(tokens)), step(self, tokens, cache))[1],
    )
    generate(backbone, VARIED, num_samples=8)
    assert sizes[0] > 30
    assert sizes[-1] < 10
    assert sizes == sorted(sizes, reverse=True)


def test_the_size_of_prefill_parts_changes_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = sequences(generate(backbone, VARIED, 2))
    monkeypatch.setattr(native, "_PREFILL_TOKENS", 15)  # two prompts at a time
    assert sequences(generate(backbone, VARIED, 2)) == usual


def test_padding_and_its_content_change_nothing(backbone: Backbone) -> None:
    ids, mask = make_prompts()
    wide_ids = torch.cat([torch.where(mask, ids, 250), torch.full((6, 5), 77)], dim=1)
    wide_mask = torch.cat([mask, torch.zeros(6, 5, dtype=torch.bool)], dim=1)
    request = make_request(VARIED, prompts=Prompts(wide_ids, wide_mask))
    wide = NativeEngine().generate(backbone, request)
    assert sequences(wide) == sequences(generate(backbone, VARIED))


def test_generating_twice_gives_the_same_bits_and_draws_from_no_global_generator(
    backbone: Backbone,
) -> None:
    before = torch.get_rng_state()
    first, second = generate(backbone, VARIED, 3), generate(backbone, VARIED, 3)
    assert torch.equal(first.tokens, second.tokens)
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(before, torch.get_rng_state())


def test_samples_of_one_prompt_differ_by_seed_and_agree_where_seeds_do(backbone: Backbone) -> None:
    request = make_request(VARIED, 3, seeds=torch.tensor([1, 2, 1] * 6))
    ours = sequences(NativeEngine().generate(backbone, request))
    assert all(ours[3 * prompt] == ours[3 * prompt + 2] for prompt in range(6))
    assert sum(ours[3 * prompt] != ours[3 * prompt + 1] for prompt in range(6)) >= 5


# -- what it must leave as it was
# -----------------------------------------------------------------------------------------


def test_draws_are_the_distributions_and_independent(backbone: Backbone) -> None:
    found = dependences_of(NativeEngine(), backbone, samples=32, steps=16)
    assert max(map(abs, found.values())) < 3.5, found


def test_draws_that_are_not_are_told(backbone: Backbone) -> None:
    class Twins(NativeEngine):
        def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
            own = request.seeds.view(-1, request.num_samples)
            twins = own[:, : own.shape[1] // 2].repeat_interleave(2, dim=1).flatten()
            return super().sample(backbone, replace(request, seeds=twins))

    assert dependences_of(Twins(), backbone, samples=32, steps=16)["samples"] > 5
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6 * 32 * 16, 50, generator=generator) * 2
    cooler = (logits / 0.8).softmax(-1).multinomial(1, generator=generator)[:, 0]
    scores = draw_scores(logits, cooler, generator).view(6, 32, 16)
    assert dependences(scores, torch.ones(6, 32, 16, dtype=torch.bool))["mean"] < -5


def test_flags_attention_and_gradients_are_left_as_they_were(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    backbone.train()
    backbone.decoder.layers[0].eval()  # type: ignore[index, union-attr]
    before = [(name, module.training) for name, module in backbone.named_modules()]
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    attention = backbone.decoder.config._attn_implementation  # type: ignore[union-attr]
    ours = generate(backbone, VARIED)
    assert [(name, module.training) for name, module in backbone.named_modules()] == before
    assert [parameter.requires_grad for parameter in backbone.parameters()] == trained
    assert backbone.decoder.config._attn_implementation == attention  # type: ignore[union-attr]
    assert ours.logprobs is not None
    assert not ours.logprobs.requires_grad
    (
        torch.ones(6, requires_grad=True) * ours.logprobs.sum(-1)
    ).sum().backward()  # no inference tensors


def test_an_error_while_decoding_leaves_attention_and_flags_as_they_were(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone.train()
    attention = backbone.decoder.config._attn_implementation  # type: ignore[union-attr]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    generate(backbone, VARIED)
    monkeypatch.setattr(DecodeLayer, "attend", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(backbone, VARIED)
    assert backbone.training
    assert backbone.decoder.config._attn_implementation == attention  # type: ignore[union-attr]


# -- roles, dtypes, architectures
# -----------------------------------------------------------------------------------------


def test_a_role_samples_from_its_own_adapter(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)))
    backbone.add_adapter("policy")
    plain = generate(backbone, VARIED)
    assert sequences(generate(backbone, VARIED, role="reference")) == sequences(plain)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    tuned = generate(backbone, VARIED)
    assert sequences(tuned) != sequences(plain)
    assert sequences(generate(backbone, VARIED, role="reference")) == sequences(plain)
    assert tuned.logprobs is not None
    torch.testing.assert_close(tuned.logprobs, training_logprobs(backbone, tuned), **FP32_MODEL)


def test_bfloat16_logprobs_stay_near_those_of_a_training_forward(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir), dtype="bfloat16"))
    ours = generate(backbone, Sampling(max_new_tokens=12), 3)
    assert ours.logprobs is not None
    assert ours.logprobs.dtype == torch.float32
    difference = (ours.logprobs - training_logprobs(backbone, ours))[ours.mask]
    torch.testing.assert_close(difference.mean(), torch.tensor(0.0), **BF16)
    assert difference.abs().max() < 0.5


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ARCHITECTURES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # learned positions
    "gpt_neox": SMALL,  # half of each head is rotated
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 16},  # normalised queries and keys
    "gemma2": {
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "attn_logit_softcapping": 0.5,
    },  # capped scores, layers with a window
    "mistral": {**SMALL, "num_key_value_heads": 1},
    "phi": {**SMALL, "num_key_value_heads": 4},
    "gpt_oss": {
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "attention": "eager",
    },  # a sink for each head, windows
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_other_architectures_give_the_logprobs_of_their_training_forward(
    tiny_model_dir: Path, name: str
) -> None:
    backbone = make_backbone(tiny_model_dir, model_type=name, **ARCHITECTURES[name])
    ours = generate(backbone, VARIED, 2)
    assert ours.logprobs is not None
    torch.testing.assert_close(ours.logprobs, training_logprobs(backbone, ours), **FP32_MODEL)


# -- layers with a window
# ------------------------------------------------------------------------------------------------------

WINDOWED = walk(["mistral", "gemma2", "gpt_oss"], "mistral", "gpt_oss")


@pytest.mark.parametrize("window", [1, 3, 9])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", WINDOWED)
def test_rows_beyond_a_window_have_the_logprobs_of_their_training_forward(
    tiny_model_dir: Path, name: str, samples: int, window: int
) -> None:
    config = {**ARCHITECTURES[name], "sliding_window": window}
    backbone = make_backbone(tiny_model_dir, model_type=name, **config)
    ours = generate(backbone, VARIED, samples)
    assert ours.logprobs is not None
    torch.testing.assert_close(ours.logprobs, training_logprobs(backbone, ours), **FP32_MODEL)


def test_a_window_that_a_decode_leaves_out_is_noticed_at_the_first_row_beyond_it(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**ARCHITECTURES["mistral"], "sliding_window": 20}
    monkeypatch.setattr(native, "windows_by_layer", lambda _: [None, None])
    backbone = make_backbone(tiny_model_dir, model_type="mistral", **config)
    generate(backbone, Sampling(max_new_tokens=13))
    with pytest.raises(ConfigurationError, match=r"decodes MistralModel otherwise .*HFEngine"):
        generate(backbone, Sampling(max_new_tokens=14))


# -- what it refuses
# ------------------------------------------------------------------------------------------------------


def test_a_prompt_that_exceeds_the_context_is_refused_with_the_numbers(backbone: Backbone) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"7 tokens .* max_new_tokens=506 need 513 positions; the model has 512",
    ):
        generate(backbone, Sampling(max_new_tokens=506))


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_batch_size=0"):
        NativeEngine(max_batch_size=0)


def test_weights_that_have_diverged_are_reported(tiny_model_dir: Path) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    next(backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite while generating sequence 0"):
        generate(backbone, Sampling(max_new_tokens=3))


def test_a_window_that_is_in_no_known_layers_is_refused_where_it_would_cut(
    tiny_model_dir: Path,
) -> None:
    backbone = make_backbone(tiny_model_dir, model_type="llama", **SMALL)
    backbone.model.config.attention_window = 12
    with pytest.raises(
        ConfigurationError, match="make 13 positions, more than the window of 12 of LlamaModel"
    ):
        generate(backbone, Sampling(max_new_tokens=6))
    generate(backbone, Sampling(max_new_tokens=5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "attention": "eager"},
         "no attention function be chosen"),
        ({"model_type": "lfm2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, r"layers of the kind \['conv'\]"),
    ],
)  # fmt: skip
def test_architectures_it_cannot_decode_are_referred_to_the_other_engine(
    tiny_model_dir: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{message}.*HFEngine"):
        generate(make_backbone(tiny_model_dir, **config), Sampling(max_new_tokens=4))
