"""The record of a run: how it began, what befell it, how it ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.callbacks import CollapseGuard, IterationCheckpoint, PolicyCollapsedError, RunRecord
from tests.unit.callbacks.standins import Data, Module, quiet_trainer
from tests.unit.callbacks.test_guards import Policy


def record(tmp: Path) -> dict[str, Any]:
    return json.loads((tmp / "run.json").read_text())


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [RunRecord("lit-rlhf fit -c 'a b.yaml'")])
    trainer.fit(Module(), datamodule=Data())
    (start,) = record(tmp_path)["starts"]
    assert (start["state"], start["reason"]) == ("finished", None)
    assert start["iterations"] == trainer.global_step > 0
    assert start["command"] == "lit-rlhf fit -c 'a b.yaml'"
    assert start["versions"].keys() >= {"python", "torch", "lightning", "transformers"}


class Killed(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert record(Path(self.trainer.default_root_dir))["starts"][-1]["state"] == "running"
        raise KeyboardInterrupt if self.wish == "interrupted" else ZeroDivisionError("no way")


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_run_that_is_cut_off_says_why(tmp_path: Path, state: str) -> None:
    module = Killed()
    module.wish = state
    with pytest.raises((SystemExit, KeyboardInterrupt, ZeroDivisionError)):
        quiet_trainer(tmp_path, [RunRecord()]).fit(module, datamodule=Data())
    (start,) = record(tmp_path)["starts"]
    assert start["state"] == state
    assert start["ended"] is not None
    assert ("no way" in start["reason"]) == (state == "failed")


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_keeps_its_earlier_starts_and_a_new_one_does_not(tmp_path: Path) -> None:
    keep = IterationCheckpoint(str(tmp_path / "checkpoints"), every_n_iterations=2, keep_last=5)
    quiet_trainer(tmp_path, [RunRecord("first"), keep]).fit(Module(), datamodule=Data())
    path = str(min((tmp_path / "checkpoints").glob("*.ckpt")))
    again = quiet_trainer(tmp_path, [RunRecord("second"), keep])
    with pytest.warns(UserWarning, match="goes on from iteration"):
        again.fit(Module(), datamodule=Data(), ckpt_path=path)
    starts = record(tmp_path)["starts"]
    assert [start["command"] for start in starts] == ["first", "second"]
    assert starts[1]["resumed_from"] == path
    quiet_trainer(tmp_path, [RunRecord("third")]).fit(Module(), datamodule=Data())
    assert [start["command"] for start in record(tmp_path)["starts"]] == ["third"]


def test_what_guards_say_is_kept(tmp_path: Path) -> None:
    diary = {i: {"response": "a b a b a b a b"} for i in range(2, 4)} | {4: {"kl": 99.0}}
    guard = CollapseGuard(max_kl=5.0, min_distinct=0.5, patience=1)
    trainer = quiet_trainer(tmp_path, [guard, RunRecord()])
    with pytest.warns(UserWarning, match="repeat"), pytest.raises(PolicyCollapsedError):
        trainer.fit(Policy(diary), datamodule=Data())
    (start,) = record(tmp_path)["starts"]
    assert "repeat themselves" in start["events"][0]["text"]
    assert start["state"] == "failed"
    assert "99" in start["reason"]
