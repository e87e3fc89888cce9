"""`lit-rlhf fit --profile` on a run that has a timer and on one that has none."""

import json
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.testing.tiny import write_tiny_world

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = [
    "-c",
    str(CONFIGS / "reward" / "lora.yaml"),
    "-c",
    str(CONFIGS / "overlays" / "tiny.yaml"),
    "--data.cache_dir",
    "cache",
]


@pytest.mark.parametrize(
    "callbacks",
    [[], ["--trainer.callbacks", "null", "--trainer.enable_checkpointing", "false"]],
    ids=["timer", "none"],
)
def test_a_profile_is_printed_and_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    callbacks: list[str],
) -> None:
    write_tiny_world(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    main(["fit", *WORDS, *callbacks, "--profile"])
    printed = capsys.readouterr().out
    assert printed.count("Time by phase") == 1
    written = list(tmp_path.rglob("profile.md"))
    assert [path.parent.name for path in written] == ["lora"]
    assert str(written[0].relative_to(tmp_path)) in printed.replace("\n", "")
    assert "aten::" in written[0].read_text()
    record = json.loads(written[0].with_suffix(".json").read_text())
    (update,) = [row for row in record["phases"] if row["phase"] == "update"]
    assert update["tokens"] > 0
    assert 0 < update["utilisation"] < 1
    assert record["peak_flops"] > 0


def test_without_it_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_world(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    main(["fit", *WORDS])
    assert not list(tmp_path.rglob("profile.*"))


def test_other_commands_refuse_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_world(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["validate", *WORDS, "--profile"])
    assert "--profile is of phases of training" in capsys.readouterr().err
