"""Estimates against what real runs hold, and what follows from them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.estimate import CARDS, LINKS, Card, Plan, Processes, Workload, estimate, run_plan
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, ValueAdapter, ValueModel
from lit_rlhf.modules import (
    GRPOPolicyModule,
    NashMDPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    SupervisedModule,
    Updates,
)
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.objectives import KTO
from lit_rlhf.rewards import LengthReward, ModelReward
from lit_rlhf.rollout import HFEngine, NativeEngine, Sampling
from lit_rlhf.testing.tokenizers import make_tokenizer
from tests.reference.live_bytes import LiveBytes
from tests.walks import walk

LORA = LoraSpec(rank=4, alpha=8)
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}
BARE = Card("bare", "cpu", 1e12, 1e10, {torch.float32: 1e11}, "memory", 0.0, slack=0.0, launch=0.0)
"""Nothing is added to what arrays take."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(directory)
    return str(directory)


def spec(tokenizer: str, *, lora: bool = True, **options: Any) -> ModelSpec:
    return ModelSpec(
        config=SHAPE, tokenizer=tokenizer, **{"lora": LORA if lora else None, **options}
    )


def policy(kind: Any, given: ModelSpec, **options: Any) -> Any:
    reward = options.pop("reward", None) or LengthReward(8)
    return kind(given, reward, sampling=Sampling(max_new_tokens=24), **options)


Make = Callable[[str], RLHFModule]
PAIRS, ALONE = Workload(8, 24, 16, 2), Workload(8, 24, 24, 1)
CASES: dict[str, tuple[Make, Workload]] = {
    "sft full": (lambda t: SupervisedModule(spec(t, lora=False)), ALONE),
    "sft bfloat16": (lambda t: SupervisedModule(spec(t, dtype="bfloat16")), ALONE),
    "reward recomputed": (
        lambda t: RewardModelModule(spec(t, gradient_checkpointing=True)),
        PAIRS,
    ),
    "dpo full": (lambda t: PreferenceModule(spec(t, lora=False)), PAIRS),
    "dpo bfloat16": (lambda t: PreferenceModule(spec(t, dtype="bfloat16")), PAIRS),
    "kto": (lambda t: PreferenceModule(spec(t), KTO()), ALONE),
    "ppo": (lambda t: policy(PPOPolicyModule, spec(t)), ALONE),
    "ppo full, parts": (
        lambda t: policy(
            PPOPolicyModule, spec(t, lora=False), updates=Updates(2, microbatch_tokens=100)
        ),
        ALONE,
    ),
    "ppo, critics' adapter": (
        lambda t: policy(PPOPolicyModule, spec(t, dtype="bfloat16"), value=ValueAdapter()),
        ALONE,
    ),
    "grpo": (lambda t: policy(GRPOPolicyModule, spec(t), num_samples=4), Workload(4, 24, 24, 4)),
    "nash-md": (lambda t: policy(NashMDPolicyModule, spec(t)), Workload(8, 24, 24, 2)),
}


class NoneEndsEarly(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.backbone.eos_token_ids = ()


@pytest.mark.filterwarnings("ignore:.*answers of the first batch:UserWarning")
@pytest.mark.parametrize("name", walk(CASES, "sft full", "grpo"))
def test_a_real_run_holds_as_much(name: str, tokenizer: str) -> None:
    make, load = CASES[name]
    estimated = run_plan(Plan(make(tokenizer), load, BARE)).need
    assert estimated == pytest.approx(_held(make(tokenizer), load), rel=0.08)


def _held(module: RLHFModule, load: Workload) -> int:
    batch = load.batch(load.prompts)
    del batch["ref_logprobs"]
    callbacks: list[Callback] = []
    if isinstance(module, PolicyModule):
        width = load.prompt_tokens
        batch = {key: batch[key][:, :width] for key in ("input_ids", "branch_ids", "position_ids")}
        batch |= {"index": torch.arange(load.prompts), "columns": {}}
        callbacks = [NoneEndsEarly()]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    with LiveBytes() as held:
        trainer.fit(module, DataLoader([batch] * 2, batch_size=None))  # type: ignore[arg-type]
    return held.peak


def test_weights_are_those_of_the_loaded_module(tokenizer: str) -> None:
    def make() -> PPOPolicyModule:
        given = spec(tokenizer, lora=False, dtype="bfloat16")
        made: PPOPolicyModule = policy(
            PPOPolicyModule, given, value=ValueModel(spec=given, start="spec", dtype="float32")
        )
        return made

    found = run_plan(Plan(make(), ALONE, BARE)).phases[0].parts
    module = make()
    module.configure_model()
    parts = {
        "weights: policy": module.backbone.model,
        "weights: heads": module.backbone.heads,
        "weights: reference": module.reference,
        "weights: value model": module.value,
    }
    for name, part in parts.items():
        tensors = {id(x): x for x in (*part.parameters(), *part.buffers())}
        assert found.get(name, 0) == sum(x.numel() * x.itemsize for x in tensors.values())


def test_four_bits_take_nine_sixteenths_of_a_byte(tokenizer: str) -> None:
    module = SupervisedModule(spec(tokenizer, quantization="nf4", dtype="bfloat16"))
    base = run_plan(Plan(module, ALONE, BARE)).phases[0].parts["weights: shared base"]
    loaded = Backbone.load(module.spec).model
    scales = sum(
        layer.weight.quant_state.absmax.numel() * 4
        for layer in loaded.modules()
        if isinstance(layer, Linear4bit)
    )
    assert base == pytest.approx(loaded.get_memory_footprint() + scales, rel=0.01)


def test_a_reward_model_that_is_not_there_yet_is_assumed(tokenizer: str) -> None:
    def parts(**options: Any) -> tuple[dict[str, float], tuple[str, ...]]:
        reward = ModelReward("runs/nowhere", **options)
        module = policy(PPOPolicyModule, spec(tokenizer), reward=reward)
        found = run_plan(Plan(module, ALONE, BARE))
        return found.phases[0].parts, found.notes

    shared, notes = parts()
    assert shared["weights: adapter reward"] == shared["weights: adapter policy"]
    assert "runs/nowhere" in notes[0]
    own, _ = parts(share_base=False, dtype="bfloat16")
    assert own["weights: reward model"] == pytest.approx(own["weights: shared base"] / 2, rel=0.01)


def test_the_largest_microbatch_is_the_last_that_fits(tokenizer: str) -> None:
    make = CASES["dpo full"][0]
    found = run_plan(Plan(make(tokenizer), PAIRS, replace(BARE, memory=40e6)))
    assert found.largest_rows > 1
    for rows, fits in ((found.largest_rows, True), (found.largest_rows + 2, False)):
        plan = Plan(make(tokenizer), PAIRS, replace(BARE, memory=40e6), rows=rows)
        assert run_plan(plan).fits is fits


def test_processes_share(tokenizer: str) -> None:
    make = CASES["sft full"][0]
    alone, divided, copied = (
        run_plan(Plan(make(tokenizer), ALONE, BARE, processes=Processes(count, strategy, 1e9)))
        for count, strategy in ((1, "ddp"), (4, "fsdp2"), (4, "ddp"))  # type: ignore[arg-type]
    )
    one, part, copy = (found.phases[0].parts for found in (alone, divided, copied))
    for name in ("weights: policy", "optimizer"):
        assert part[name] == one[name] / 4
        assert copy[name] == one[name]
    size = one["weights: policy"] - 4 * 16  # less a buffer of rotary frequencies
    assert copied.phases[-1].name == "exchange"
    assert copied.phases[-1].likely == pytest.approx(2 * 0.75 * size / 1e9, rel=0.01)


def test_sampling_takes_as_long_as_reading_the_weights(tokenizer: str) -> None:
    module = policy(PPOPolicyModule, spec(tokenizer, lora=False))
    card = replace(BARE, peaks={torch.float32: 1e30})
    rollout = run_plan(Plan(module, ALONE, card)).phases[0]
    cache = (
        8 * (24 + 32) * 3 * 2 * 2 * 32 * 4
    )  # rows, positions, layers, both, groups, width, bytes
    read = rollout.parts["weights: policy"] + cache / 2
    assert rollout.at_least == pytest.approx(24 * read / card.bandwidth, rel=0.01)


def test_engines(tokenizer: str) -> None:
    def rollout(engine: Any) -> dict[str, float]:
        module = policy(GRPOPolicyModule, spec(tokenizer), num_samples=4, engine=engine)
        return run_plan(Plan(module, Workload(4, 8, 96, 4), BARE)).phases[0].parts

    whole, half, rows = (
        rollout(NativeEngine()),
        rollout(NativeEngine(max_batch_size=8)),
        rollout(HFEngine()),
    )
    assert half["key-value cache"] * 2 == whole["key-value cache"]
    assert rows["key-value cache"] > 1.05 * whole["key-value cache"]


def test_advice_is_an_option_that_was_tried(tokenizer: str) -> None:
    module = CASES["ppo full, parts"][0](tokenizer)
    load = replace(ALONE, prompts=16)
    fits = estimate(module, None, card=BARE, batch_size=16, prompt_tokens=24)
    assert fits.advice.startswith("It fits: ")
    found = run_plan(Plan(module, load, BARE))
    tight = estimate(
        module, None, card=replace(BARE, memory=found.need * 0.97), batch_size=16, prompt_tokens=24
    )
    assert "Cheapest way out: model.updates.microbatch_tokens: 48; that takes" in tight.advice
    hopeless = estimate(
        module, None, card=replace(BARE, memory=1e5), batch_size=16, prompt_tokens=24
    )
    assert "choose a smaller model" in hopeless.advice


def test_advice_leaves_the_rows_of_a_step_as_they_are(tokenizer: str) -> None:
    """A batch of 7 three times would be another training than one of 16."""
    module = CASES["sft bfloat16"][0](tokenizer)
    load = replace(ALONE, branches=1, prompts=16)
    seven = run_plan(Plan(module, load, BARE, rows=7)).need
    given: dict[str, Any] = {"batch_size": 16, "prompt_tokens": 24, "completion_tokens": 24}
    found = estimate(module, None, card=replace(BARE, memory=seven * 1.001), **given)
    assert 4 < found.largest_rows < 8
    assert "data.batch_size: 4 with trainer.accumulate_grad_batches: 4; that" in found.advice


@pytest.mark.walk
def test_microbatches_are_those_that_a_run_would_choose(tokenizer: str) -> None:
    load = Workload(1024, 24, 24, 4)  # 122,880 tokens
    card = replace(BARE, kind="cuda", memory=1e12, reserved=1e9)

    def found(card: Card, **options: Any) -> tuple[int, str]:
        module = policy(GRPOPolicyModule, spec(tokenizer), num_samples=4, **options)
        estimated = run_plan(Plan(module, load, card))
        assert module.microbatch_size.chosen is None  # that of a copy was
        return estimated.rows * load.row, " ".join(estimated.notes)

    tokens, said = found(card)
    assert 32768 < tokens <= 65536
    assert "auto is taken for 65,536 padded tokens" in said
    module = policy(GRPOPolicyModule, spec(tokenizer), num_samples=4)
    first = run_plan(Plan(module, load, card, rows=8192 // load.row))
    update = next(phase for phase in first.phases if phase.name == "update")
    passing = update.parts["activations"] + update.parts["logits"]
    room = 16384 / 8192 * passing / 0.6  # twice as many fit, and a little more
    tokens, said = found(replace(card, memory=update.total - passing + 1.2 * room))
    assert 8192 < tokens <= 16384
    assert "auto is taken for 16,384 padded tokens" in said
    for each in (BARE, replace(card, memory=1e6)):
        tokens, said = found(each)
        assert tokens <= 8192
        assert "auto is taken for 8,192 padded tokens" in said
    tokens, said = found(card, updates=Updates(microbatch_tokens=4096))
    assert tokens <= 4096
    assert "auto" not in said


def test_small_passes_take_as_long_as_launching_their_kernels(tokenizer: str) -> None:
    peaks = {torch.float32: 1e30}
    card = replace(BARE, kind="cuda", bandwidth=1e30, peaks=peaks, launch=1.0, replay=0.01)

    def seconds(given: ModelSpec, **options: Any) -> dict[str, float]:
        module = policy(GRPOPolicyModule, given, num_samples=4, **options)
        found = run_plan(Plan(module, Workload(4, 24, 24, 4), card))
        return {phase.name: phase.likely for phase in found.phases}

    recorded, eager = seconds(spec(tokenizer)), seconds(spec(tokenizer, kernels="plain"))
    # A step of three layers: a dozen products each, and what is between them; the plain one has more.
    step = recorded["rollout"] / 24 / card.replay
    assert 3 * 12 < step < eager["rollout"] / 24 / card.launch < 3 * 100
    two = seconds(spec(tokenizer), updates=Updates(minibatches=2))
    assert two["update"] == pytest.approx(2 * recorded["update"], rel=0.05)
    assert two["reference"] == recorded["reference"] > 3 * 12


def test_a_module_stays_as_it_is(tokenizer: str) -> None:
    module = OnlineDPOPolicyModule(spec(tokenizer), LengthReward(8))
    estimate(module, card=BARE, batch_size=4, prompt_tokens=8)
    assert "backbone" not in dict(module.named_children())
    module.configure_model()
    assert module.backbone.device.type == "cpu"
    with pytest.raises(ConfigurationError, match="loaded already"):
        estimate(module, card=BARE, batch_size=4, prompt_tokens=8)


def test_what_is_not_known_is_asked_for(tokenizer: str) -> None:
    module = SupervisedModule(spec(tokenizer))
    with pytest.raises(ConfigurationError, match=r"data\.max_prompt_length isn't set"):
        estimate(module, batch_size=4, completion_tokens=8)
    with pytest.raises(ConfigurationError, match="choose one of h200, h100"):
        estimate(module, card="h1000", batch_size=4, prompt_tokens=8, completion_tokens=8)
    with pytest.raises(ConfigurationError, match="link='tin'"):
        estimate(
            module, card="h100", link="tin", batch_size=4, prompt_tokens=8, completion_tokens=8
        )


def test_a_config_is_enough(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], **SHAPE, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = SupervisedModule(ModelSpec(name=str(tmp_path), dtype="auto"))
    found = estimate(module, card="l40s", batch_size=4, prompt_tokens=8, completion_tokens=8)
    assert found.fits
    assert "No tokenizer" in found.notes[0]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    weights = found.phases[0].parts["weights: policy"]
    assert weights == pytest.approx(2 * model.num_parameters(), rel=0.001)  # `auto`: bfloat16 there
    json.dumps(found.to_dict())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_card(precision: str, tokenizer: str) -> None:
    module = PreferenceModule(spec(tokenizer, lora=False, branching="expanded"))
    found = estimate(
        module,
        card="h100",
        precision=precision,
        batch_size=4,
        prompt_tokens=16,
        completion_tokens=16,
    )
    assert found.fits
    assert 0 < found.phases[0].at_least < found.phases[0].likely


def test_cards_have_what_their_names_say() -> None:
    for name, card in CARDS.items():
        size = {"h200": 141, "h100": 80, "a100-80": 80, "a100-40": 40, "l40s": 48, "rtx4090": 24}
        assert 0.9 * size[name] * 1e9 < card.memory < 1.08 * size[name] * 1e9
        assert card.peak(torch.bfloat16) > 1.9 * card.peak(torch.float32)
        assert card.link in LINKS


def test_autocast_keeps_activations_in_fewer_bits(tokenizer: str) -> None:
    kept = {}
    for precision in ("32-true", "bf16-mixed"):
        module = SupervisedModule(spec(tokenizer, lora=False))
        given = estimate(
            module,
            card="h100",
            precision=precision,
            batch_size=64,
            prompt_tokens=64,
            completion_tokens=64,
        )
        kept[precision] = given.phases[0].parts["activations"]
    assert kept["bf16-mixed"] < 0.8 * kept["32-true"]
