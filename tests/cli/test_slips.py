"""Slips on the command line are answered with what was meant."""

import re
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.cli.commands import COMMANDS
from tests.cli.test_main import REWARD, trained

__all__ = ["trained"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rewrd"], "lit-rlhf: there is no command 'rewrd'. Did you mean reward?"),
        (["push", "out", "me/it", "--dry-run"], "no option --dry-run. Did you mean --dry_run"),
        (["generate", "--promt", "a"], "no option --promt. Did you mean --prompt"),
        (["label", "a.jsonl", "--output", "b.jsonl", "--judge", "LocalJuge"], "mean LocalJudge"),
        (["from-trl", "a.py", "--task", "rewards"], "Expected one of 'sft', 'reward',"),
        (["report"], "runs must be given: lit-rlhf report --help"),
        (["verify", "--methods", "DPPO"], "no method 'DPPO' to verify. Did you mean PPO or DPO"),
        (
            ["verify", "--model.class_path", "os.PathLik"],
            "os defines no 'PathLik'. Did you mean PathLike",
        ),
        (
            ["generate", "--model", "runs/sft/lora", "--prompt", "a"],
            "give its export, runs/sft/lora/export",
        ),
        (
            ["generate", "--model", "data/tiny-mode", "--prompt", "a"],
            "Did you mean data/tiny-model?",
        ),
        (["data", "show", "data/promts.jsonl"], "Did you mean data/prompts.jsonl?"),
        (
            [
                "iterate",
                "--policy=p",
                "--run_dir=r",
                "--method=IterativeDPO",
                "--method.feedback=RevisionFeedback",
                "--method.feedback.judge=nan",
            ],
            "method.feedback.judge: ",
        ),
        *(
            (
                [
                    "iterate",
                    "--policy=p",
                    "--run_dir=r",
                    "--method=RejectionSampling",
                    "--method.prompts=p.jsonl",
                    f"--method.reward={given}",
                ],
                f"lit-rlhf iterate: method.reward: {given!r} is no mapping of options. Give {{name: value",
            )
            for given in ("LengthReward", "rewards/nonesuch.yaml", "{class_path: ")
        ),
        (["from-trl", "beside.pi"], "There is no file beside.pi (looked in"),
        (
            ["fit", *REWARD, "--run_dir", "r", "--seed_everything", "3"],
            "seed_everything=3 with model.seed=0 changes nothing",
        ),
    ],
)
def test_slips_name_what_was_meant(
    words: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [*COMMANDS, "data show", "data inspect", "data convert"])
def test_a_wrong_option_points_to_the_help_of_its_own_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--nonesuch", "1"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"lit-rlhf {command.split(maxsplit=1)[0]}: " in said
    if command != "data":  # whose commands are named
        assert re.findall(r"lit-rlhf [\w ()-]+ --help", said) == [f"lit-rlhf {command} --help"]


def test_a_slip_is_compared_with_all_that_a_command_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option, meant in (("--crd", "--card"), ("--run_dri", "--run_dir")):
        with pytest.raises(SystemExit):
            main(["estimate", "-c", "sft/lora", option, "1"])
        assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_a_start_that_is_refused_leaves_a_run_as_it_was(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    run = Path("runs/reward/lora")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main(["fit", *REWARD, "--run_dir", str(run), "--model.backbone.lora.alpha", "3"])
    assert "holds checkpoints of an earlier run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
