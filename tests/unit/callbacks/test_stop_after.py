"""An end by steps or iterations, and going on behind it."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lit_rlhf.callbacks import IterationCheckpoint, StopAfter
from lit_rlhf.errors import ConfigurationError
from tests.unit.callbacks.standins import BATCH, ROWS, Data, Module, quiet_trainer

EPOCH = ROWS // BATCH


def fit(
    tmp: Path, limit: StopAfter, manual: bool = False, ckpt_path: str | None = None, **options: Any
) -> tuple[Module, Trainer]:
    module = Module(manual)
    saving = IterationCheckpoint(str(tmp / "checkpoints"), every_n_iterations=100)
    trainer = quiet_trainer(tmp, [limit, saving], **{"max_epochs": -1, **options})
    trainer.fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    return module, trainer


def weights_equal(one: Module, other: Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(bool((a == b).all()) for a, b in pairs)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("first", [EPOCH - 2, EPOCH, EPOCH + 1])
def test_a_run_goes_on_behind_its_end_as_if_there_had_been_none(
    tmp_path: Path, manual: bool, first: int
) -> None:
    whole, _ = fit(tmp_path / "whole", StopAfter(iterations=2 * EPOCH + 3), manual)
    begun, _ = fit(tmp_path, StopAfter(iterations=first), manual)
    rest, _ = fit(tmp_path, StopAfter(iterations=2 * EPOCH + 3), manual, ckpt_path="last")
    assert len(begun.seen) == first
    assert begun.seen + rest.seen == whole.seen
    assert weights_equal(rest, whole)


def test_nothing_is_left_to_do_behind_the_end(tmp_path: Path) -> None:
    fit(tmp_path, StopAfter(iterations=4))
    again, _ = fit(tmp_path, StopAfter(iterations=4), ckpt_path="last")
    assert again.seen == []


def test_a_policy_finishes_the_iteration_that_reaches_its_steps(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, StopAfter(steps=5), manual=True)
    assert (len(module.seen), trainer.global_step) == (3, 6)  # two optimizer steps in each


def test_accumulated_gradients_are_applied_first(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 4}
    module, trainer = fit(tmp_path / "iterations", StopAfter(iterations=3), **options)
    assert (len(module.seen), trainer.global_step) == (4, 1)
    module, trainer = fit(tmp_path / "steps", StopAfter(steps=3), **options)
    assert (len(module.seen), trainer.global_step) == (EPOCH + 4, 3)  # an epoch ends in a step


def test_the_trainers_epochs_end_it_as_before(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, StopAfter(iterations=100), max_epochs=1)
    assert len(module.seen) == EPOCH


@pytest.mark.parametrize(
    "options", [{}, {"steps": 1, "iterations": 1}, {"steps": 0}, {"iterations": -1}, {"steps": 1.5}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"StopAfter\("):
        StopAfter(**options)
