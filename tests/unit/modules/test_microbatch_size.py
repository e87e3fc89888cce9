"""`microbatch_tokens: auto`: the rule, and runs on a memory that a test says."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.modules import PPOPolicyModule, Updates, ValueLoss, minibatches
from lit_rlhf.modules.minibatches import LEAST, MOST, SHARE, START, fitting_tokens
from tests.unit.modules.device_memory import EACH, EARLIER, SaidMemory
from tests.unit.modules.policies import fit, make_ppo, make_trainer, prompt_loader

SMALL = 64
"""`START` for tiny texts, so that steps have several microbatches."""
TWICE = Updates(epochs=2)


def test_a_power_of_two_within_bounds() -> None:
    def rooms(tokens: float) -> float:
        """What is free where so many fit."""
        return tokens * 5e5 / SHARE

    assert fitting_tokens(rooms(32768.1), 5e5) == 32768
    assert fitting_tokens(rooms(32767), 5e5) == 16384
    assert fitting_tokens(rooms(1e9), 5e5) == MOST
    assert fitting_tokens(1e9, 0.0) == MOST  # nothing was taken that could be seen
    assert fitting_tokens(rooms(3), 5e5) == fitting_tokens(-1e9, 5e5) == LEAST


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", None])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"microbatch_tokens must be a whole .*\"auto\""):
        Updates(microbatch_tokens=value)


class Peaks(Callback):
    def __init__(self) -> None:
        self.kept: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.kept.append(pl_module.phases.peak)


def room_for(tokens: float, module: PPOPolicyModule) -> SaidMemory:
    """Memory in which so many fit beside the gradients."""
    memory = SaidMemory(0)
    memory.watch(module)
    module.configure_model()
    gradients = sum(4 * p.numel() for p in module.parameters() if p.requires_grad)
    memory.left = int(gradients + EACH * tokens / SHARE)
    return memory


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatches, "START", SMALL)
    monkeypatch.setattr(minibatches, "LEAST", 16)


@pytest.mark.usefixtures("small")
def test_the_second_microbatch_is_measured_once_and_its_choice_stays(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, peaks = make_ppo(tiny_model_dir, updates=TWICE), Peaks()
    memory = room_for(130, module)
    with caplog.at_level("INFO"):
        fit(module, tiny_model_dir, max_epochs=2, callbacks=[peaks])
    assert module.microbatch_size.chosen == 128
    assert memory.forgotten_at == [1]  # before the second pass
    assert peaks.kept == [EARLIER, 0, 0, 0]  # what is logged as the iteration's peak
    first = next(i for i in range(1, 9) if memory.passes[i] > SMALL)
    assert max(memory.passes[:first]) <= SMALL < max(memory.passes[first:]) <= 128
    said = [record.message for record in caplog.records if "microbatch_tokens" in record.message]
    assert len(said) == 1
    assert "128 padded tokens" in said[0]


@pytest.mark.usefixtures("small")
def test_on_a_cpu_nothing_is_chosen(tiny_model_dir: Path) -> None:
    assert START == 8192
    module = make_ppo(tiny_model_dir, updates=TWICE)
    fit(module, tiny_model_dir)
    assert module.microbatch_size.tokens == SMALL
    assert module.extra_state()["microbatch_size"]["chosen"] is None


@pytest.mark.usefixtures("small")
def test_every_pass_is_as_large_as_was_chosen(tiny_model_dir: Path) -> None:
    """Of the update, of the reference, of values and of the policy's own log-probs."""
    module = make_ppo(tiny_model_dir, "lora-adapter", updates=TWICE, recompute_logprobs=True)
    memory = room_for(35, module)
    fit(module, tiny_model_dir)
    assert module.microbatch_size.tokens == 32
    assert max(memory.passes[:3]) > 32 >= max(memory.passes[-8:])
    first, second = memory.evaluated[: -3 * 4], memory.evaluated[-3 * 4 :]  # four rows, thrice
    assert max(first) > 32 >= max(second)


@pytest.mark.usefixtures("small")
def test_a_step_of_one_microbatch_and_a_number_choose_nothing(tiny_model_dir: Path) -> None:
    for updates in (Updates(minibatches=4), Updates(microbatch_tokens=48)):
        module = make_ppo(tiny_model_dir, updates=updates)
        memory = room_for(130, module)
        fit(module, tiny_model_dir)
        assert module.microbatch_size.chosen is None
        assert not memory.forgotten_at
    assert module.microbatch_size.tokens == 48


@pytest.mark.usefixtures("small")
def test_it_waits_for_the_optimizer_to_have_its_state(tiny_model_dir: Path) -> None:
    """While the critic warms up the policy has none; it will take memory from the first step on."""
    warm = ValueLoss(warmup=1)
    module = make_ppo(tiny_model_dir, updates=Updates(epochs=1), value_loss=warm)
    memory = room_for(130, module)
    fit(module, tiny_model_dir, limit_train_batches=1)
    assert memory.forgotten_at
    assert module.microbatch_size.chosen is None
    module = make_ppo(tiny_model_dir, updates=Updates(epochs=1), value_loss=warm)
    room_for(130, module)
    fit(module, tiny_model_dir, limit_train_batches=2)
    assert module.microbatch_size.chosen == 128


@pytest.mark.usefixtures("small")
def test_a_resumed_run_sums_in_the_same_parts(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = make_ppo(tiny_model_dir, updates=TWICE)
    room_for(35, whole)
    fit(whole, tiny_model_dir, max_epochs=2)
    half = make_ppo(tiny_model_dir, updates=TWICE)
    room_for(35, half)
    trainer = fit(half, tiny_model_dir)
    trainer.save_checkpoint(tmp_path / "half.ckpt")

    def resumed(updates: Updates) -> tuple[PPOPolicyModule, SaidMemory]:
        module = make_ppo(tiny_model_dir, updates=updates)
        memory = room_for(1000, module)  # would choose otherwise
        loader = prompt_loader(tiny_model_dir)
        make_trainer(max_epochs=2).fit(module, loader, ckpt_path=tmp_path / "half.ckpt")
        return module, memory

    module, memory = resumed(TWICE)
    assert module.microbatch_size.chosen == 32
    assert not memory.forgotten_at
    for name, weight in whole.named_parameters():
        assert torch.equal(module.get_parameter(name), weight), name
    module, memory = resumed(replace(TWICE, microbatch_tokens=500))
    assert max(memory.passes) > SMALL  # what is written now holds


@pytest.mark.usefixtures("small")
def test_a_run_that_goes_on_with_another_card_chooses_anew(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = make_ppo(tiny_model_dir, updates=TWICE)
    room_for(130, half).name = "a large card"
    fit(half, tiny_model_dir).save_checkpoint(tmp_path / "half.ckpt")
    assert half.microbatch_size.chosen == 128
    for card in ("a small card", "no GPU"):
        module = make_ppo(tiny_model_dir, updates=TWICE)
        memory = room_for(35, module)
        memory.name = card
        if card == "no GPU":
            module.microbatch_size.memory_of = lambda device: None
        loader = prompt_loader(tiny_model_dir)
        with caplog.at_level(logging.INFO):
            make_trainer(max_epochs=2).fit(module, loader, ckpt_path=tmp_path / "half.ckpt")
        assert "128 padded tokens on a large card, and this run goes on with other" in caplog.text
        caplog.clear()
        assert module.microbatch_size.chosen == (32 if card == "a small card" else None)
        assert memory.passes[0] <= SMALL < 128
