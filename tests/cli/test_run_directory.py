"""What a run's directory tells afterwards, whatever else was tried in it."""

import json
import os
import re
import shutil
import warnings
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import pytest

from lit_rlhf.cli import main
from lit_rlhf.files import read_lines
from lit_rlhf.report.runs import read_runs
from lit_rlhf.testing.tiny import write_tiny_world

MODEL = "data/tiny-model"
TINY = ["-c", "overlays/tiny", "--run_dir", "run", "--data.tokenizer", MODEL]
OF = {
    "reward": ["-c", "reward/lora", *TINY, "--data.train.path", "data/preferences.jsonl"],
    "sft": ["-c", "sft/lora", *TINY, "--data.train.path", "data/demonstrations.jsonl"],
    "kto": ["-c", "preference/kto_lora", *TINY, "--data.train.path", "data/preferences.jsonl"],
    "grpo": ["-c", "policy/grpo_lora", *TINY, "--model.reward", "LengthReward"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `data`, and of what two kinds of training leave in `run`, under the names of the kinds."""
    root = tmp_path_factory.mktemp("trained")
    write_tiny_world(root / "data", rows=24)
    with patch.dict(os.environ, LIT_RLHF_CACHE=str(root / "cache")), chdir(root):
        for kind in ("reward", "grpo"):
            main(["fit", *OF[kind]])
            Path("run").rename(kind)
    return root


@pytest.fixture
def world(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").symlink_to(trained / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def after_training(trained: Path, kind: str) -> None:
    """As if `fit` had been called here."""
    shutil.copytree(trained / kind, "run")


def test_the_configuration_is_that_of_the_last_training(world: Path, trained: Path) -> None:
    """Not of a start that was refused, and not of a validation."""
    after_training(trained, "reward")
    (run,) = read_runs([Path("run")])
    assert run.settled()["data.batch_size"] == 4
    with pytest.raises(SystemExit):  # an adapter of another size
        main(["fit", *OF["reward"], "--ckpt_path", "last", "--model.backbone.lora.rank", "4"])
    main(["validate", *OF["reward"], "--data.eval_batch_size", "2", "--ckpt_path", "last"])
    (again,) = read_runs([Path("run")])
    assert again.config == run.config
    main(["fit", *OF["reward"], "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    (last,) = read_runs([Path("run")])
    assert last.settled()["trainer.max_epochs"] == 2


def test_a_saved_configuration_makes_another_run(world: Path, trained: Path) -> None:
    (saved,) = (trained / "reward").rglob("config.yaml")
    main(["fit", "-c", str(saved), "--run_dir", "another"])
    assert Path("another/export").is_dir()
    (again,) = Path("another").rglob("config.yaml")
    assert again.read_text() == saved.read_text().replace("run_dir: run", "run_dir: another")


def test_a_dry_run_of_a_policy_leaves_nothing(
    world: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning bounds it by steps, of which an iteration has several; another run's files stay as they are."""
    dry = ["--trainer.fast_dev_run", "true"]
    main(["fit", *OF["grpo"], *dry])
    assert "GRPOPolicyModule" in capsys.readouterr().out
    assert not Path("run").exists()
    after_training(trained, "grpo")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    main(["fit", *OF["grpo"], *dry])
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("words", "left_out", "left"),
    [
        (["--trainer.enable_progress_bar", "false"], {"PhaseProgressBar"}, set()),
        (["--trainer.callbacks+", "TQDMProgressBar"], {"PhaseProgressBar"}, {"TQDMProgressBar"}),
        (
            ["--trainer.enable_checkpointing", "false"],
            {"IterationCheckpoint", "Preemption"},
            {"PhaseProgressBar"},
        ),
    ],
    ids=["no bar", "another bar", "no checkpoints"],
)
def test_callbacks_of_a_file_yield_to_options(
    words: list[str], left_out: set[str], left: set[str], world: Path
) -> None:
    with patch("lightning.pytorch.Trainer.fit", autospec=True) as fit:
        main(["fit", *OF["sft"], *words])
    kinds = {type(each).__name__ for each in fit.call_args.args[0].callbacks}
    assert not kinds & left_out
    assert kinds >= left | {"PhaseTimer", "ExportModel"}
    if "IterationCheckpoint" in left_out:
        main(["fit", *OF["sft"], *words])
        assert Path("run/export").is_dir()
        assert not Path("run/checkpoints").exists()


def test_a_name_that_validation_lacks_is_refused_before_training(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor"]
    with pytest.raises(SystemExit):
        main(["fit", *OF["grpo"], *watch, "val/loss"])
    assert "monitor='val/loss', which is not logged." in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()
    there = [*watch, "val/objective/scores", "--trainer.callbacks.mode", "max"]
    main(["fit", *OF["grpo"], *there])
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert [line["stage"] for line in lines].count("validation") == 1
    # Who asks for none is taken at his word.
    sanity = ["--trainer.num_sanity_val_steps", "0", "--run_dir", "asked"]
    with pytest.raises(SystemExit):
        main(["fit", *OF["grpo"], *watch, "val/loss", *sanity])
    assert Path("asked/metrics.jsonl").exists()


def test_what_is_not_looked_at_is_said(
    world: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of the untrained model would be taken for those of the run."""
    after_training(trained, "reward")
    with pytest.warns(UserWarning, match=r"not at run/checkpoints/iteration-00000002\.ckpt"):
        main(["validate", *OF["reward"]])
    with pytest.raises(SystemExit):
        main(["validate", *OF["reward"], "--ckpt_path", "best"])
    assert "or last for the newest" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No checkpoint is read")
        main(["validate", *OF["reward"], "--ckpt_path", "last"])
    shutil.rmtree("run/checkpoints")
    with pytest.raises(SystemExit):
        main(["validate", *OF["reward"], "--ckpt_path", "last"])
    assert "ckpt_path='last': there is no checkpoint in run/checkpoints." in capsys.readouterr().err


def test_a_checkpoint_says_that_its_base_is_missing(
    world: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its path is relative to where the run was started."""
    after_training(trained, "reward")
    monkeypatch.chdir(world / "run")
    with pytest.raises(SystemExit):
        main(["export", "--ckpt_path", "checkpoints", "--output", "exported"])
    assert "The base of the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reward", {"row", "scores"}),
        ("sft", {"row", "logprobs", "lengths"}),
        ("kto", {"row", "logprobs", "ref_logprobs", "lengths"}),
        ("grpo", {"row", "iteration", "prompt", "response", "score", "finished"}),
    ],
)
def test_predictions_are_written(
    kind: str, expected: set[str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each row of the test data that can be used, by its place in the file."""
    answers = {"completion": "yes", "chosen": "yes", "rejected": "no "}
    pair = ("chosen", "rejected")
    columns = {"reward": pair, "sft": ("completion",), "kto": pair, "grpo": ()}[kind]
    rows = [{"prompt": f"say {n} "} | {each: answers[each] for each in columns} for n in range(6)]
    rows[2]["prompt"] = ""
    test = Path("test.jsonl")
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--data.test", "FileSource", "--data.test.path", str(test)]
    main(["predict", *OF[kind], *source, "--data.eval_batch_size", "2"])
    assert capsys.readouterr().out.endswith("run/predictions.jsonl\n")
    found = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    each = 2 if kind == "kto" else 1  # answers of a pair, alone
    assert [row["row"] for row in found] == [row for row in (0, 1, 3, 4, 5) for _ in range(each)]
    assert set(found[0]) == expected
    assert kind != "kto" or len(found[0]["logprobs"]) == len(found[0]["ref_logprobs"]) == 1
    assert kind != "grpo" or [row["prompt"] for row in found][2] == "say 3 "
    if kind == "sft":
        Path("run/predictions.jsonl").write_text("{}\n")
        with pytest.raises(SystemExit):
            main(["predict", *OF[kind], *source])
        assert "run/predictions.jsonl is there already. Choose another" in capsys.readouterr().err
        main(["predict", *OF[kind], *source, "--overwrite"])
        assert len(read_lines(Path("run/predictions.jsonl"))) == 5


def test_a_run_without_an_export_is_named_by_its_checkpoints(
    world: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that was killed before its end."""
    after_training(trained, "grpo")
    shutil.rmtree("run/export")
    with pytest.raises(SystemExit):
        main(["generate", "--model", "run", "--prompt", "how "])
    said = capsys.readouterr().err
    assert "run/checkpoints/iteration-00000002.ckpt" in said
    way_out = re.search(r"lit-rlhf (export .*?/export)", said)
    assert way_out is not None
    main(way_out[1].split())
    assert Path("run/export/lit_rlhf.json").is_file()


def test_ctrl_c_is_no_traceback(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hand.py").write_text(
        "def stop(prompts, responses, **columns):\n    raise KeyboardInterrupt\n"
    )
    words = ["--prompt", "how ", "--reward", "FunctionReward", "--reward.function", "hand.stop"]
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--model", "data/tiny-model", *words, "--sampling.max_new_tokens", "2"])
    assert stopped.value.code == 130
    assert "generate: interrupted" in capsys.readouterr().err
