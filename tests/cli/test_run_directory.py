"""What a run's directory tells afterwards, whatever else was tried in it."""

import json
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.report.runs import read_runs
from lit_rlhf.testing.tiny import write_tiny_world

MODEL = "data/tiny-model"
TINY = ["-c", "overlays/tiny", "--run_dir", "run", "--data.tokenizer", MODEL]
OF = {
    "reward": ["-c", "reward/lora", *TINY, "--data.train.path", "data/preferences.jsonl"],
    "sft": ["-c", "sft/lora", *TINY, "--data.train.path", "data/demonstrations.jsonl"],
    "grpo": ["-c", "policy/grpo_lora", *TINY, "--model.reward", "LengthReward"],
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_world(tmp_path / "data", rows=24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configuration_is_that_of_the_last_training(world: Path) -> None:
    """Not of a start that was refused, and not of a validation."""
    main(["fit", *OF["reward"]])
    (run,) = read_runs([Path("run")])
    assert run.settled()["data.batch_size"] == 4
    with pytest.raises(SystemExit):  # an adapter of another size
        main(["fit", *OF["reward"], "--ckpt_path", "last", "--model.backbone.lora.rank", "4"])
    main(["validate", *OF["reward"], "--data.eval_batch_size", "2"])
    (again,) = read_runs([Path("run")])
    assert again.config == run.config
    main(["fit", *OF["reward"], "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    (last,) = read_runs([Path("run")])
    assert last.settled()["trainer.max_epochs"] == 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reward", {"row", "scores"}),
        ("sft", {"row", "logprobs", "lengths"}),
        ("grpo", {"row", "iteration", "prompt", "response", "score", "finished"}),
    ],
)
def test_predictions_are_written(
    kind: str, expected: set[str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each row of the test data that can be used, by its place in the file."""
    answers = {"completion": "yes", "chosen": "yes", "rejected": "no "}
    columns = {"reward": ("chosen", "rejected"), "sft": ("completion",), "grpo": ()}[kind]
    rows = [{"prompt": f"say {n} "} | {each: answers[each] for each in columns} for n in range(6)]
    rows[2]["prompt"] = ""
    test = Path("test.jsonl")
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--data.test", "FileSource", "--data.test.path", str(test)]
    main(["predict", *OF[kind], *source, "--data.eval_batch_size", "2"])
    assert capsys.readouterr().out.endswith("run/predictions.jsonl\n")
    found = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in found] == [0, 1, 3, 4, 5]
    assert set(found[0]) == expected
    assert kind != "grpo" or [row["prompt"] for row in found][2] == "say 3 "
