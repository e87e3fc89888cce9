"""`lit-rlhf score`: what a killed call leaves, and what it goes on with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.cli.unfinished import Unfinished
from lit_rlhf.files import read_lines
from lit_rlhf.models import Backbone, ModelSpec, export_reward
from lit_rlhf.testing import write_jsonl

ROWS = [{"prompt": f"how was number {i}? ", "completion": "good " * (i % 4)} for i in range(8)]


def export(model: Path, path: Path, *, scale: float = 1.0, std: float = 1.0) -> Path:
    backbone = Backbone.load(ModelSpec(name=str(model)), lm_head=False)
    backbone.add_head("reward")
    generator = torch.Generator().manual_seed(5)
    backbone.heads["reward"].weight.data.normal_(generator=generator).mul_(scale)
    export_reward(backbone, path, merge=True, score_mean=0.0, score_std=std)
    return path


def score(model: Path, where: Path) -> list[Any]:
    output = where / "out.jsonl"
    words = ["--model", str(model), "--data", str(write_jsonl(where / "rows.jsonl", ROWS))]
    main(["score", *words, "--output", str(output), "--batch_size", "1"])
    return [row["score"] for row in read_lines(output)]


def cut(model: Path, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call that was ended behind its fourth batch leaves."""
    add, batches = Unfinished.add, iter(range(4))

    def added(self: Unfinished, rows: dict[int, float]) -> None:
        add(self, rows)
        if next(batches) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "add", added)
        with pytest.raises(SystemExit):
            score(model, where)


@pytest.mark.parametrize(
    ("other", "scored"),
    [({}, 2), ({"scale": 2.0}, 6), ({"std": 2.0}, 6)],
    ids=["the same", "another head", "other scores"],
)
def test_ended_it_goes_on_behind_its_last_batch_if_all_is_the_same(
    other: dict[str, float],
    scored: int,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = export(tiny_model_dir, tmp_path / "first")
    cut(first, tmp_path, monkeypatch)
    model = export(tiny_model_dir, tmp_path / "again", **other).rename(first.with_name("model"))
    first.rename(tmp_path / "gone")
    model.rename(first)
    kept: list[int] = []
    add = Unfinished.add
    monkeypatch.setattr(Unfinished, "add", lambda self, rows: (kept.extend(rows), add(self, rows)))
    found = score(first, tmp_path)
    assert len(kept) == scored  # of six answers that aren't empty
    assert not list(tmp_path.glob(".*.unfinished"))
    (tmp_path / "out.jsonl").unlink()
    assert score(first, tmp_path) == found
    assert [value is None for value in found] == [not row["completion"] for row in ROWS]


def test_what_is_longer_than_the_model_reads_has_no_score(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(export(tiny_model_dir, tmp_path / "model"))
    long = {"prompt": "how? ", "completion": "good " * 600}  # in a model of 512 tokens
    data = str(write_jsonl(tmp_path / "rows.jsonl", [ROWS[1], long, ROWS[0], ROWS[2]]))
    output = tmp_path / "out.jsonl"
    main(["score", "--model", model, "--data", data, "--output", str(output)])
    first, none, empty, last = (row["score"] for row in read_lines(output))
    said = capsys.readouterr().err
    assert "1 of 4 rows are longer than the 512 tokens" in said
    assert f"4 rows: {output}" in said
    assert none is None and empty is None and first != last
    alone = str(write_jsonl(tmp_path / "alone.jsonl", [ROWS[1]]))
    main(["score", "--model", model, "--data", alone, "--output", str(tmp_path / "alone.out")])
    assert read_lines(tmp_path / "alone.out")[0]["score"] == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "missing", "option"),
    [
        (["score", "--data"], "prompt", "--prompt_column"),
        (["score", "--prompt_column", "q", "--data"], "completion", "--completion_column"),
        (["generate", "--prompts"], "prompt", "--prompt_column"),
    ],
)
def test_a_column_of_another_name_is_asked_for(
    words: list[str], missing: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_jsonl(tmp_path / "rows.jsonl", [{"q": "how? ", "a": "well"}]))
    with pytest.raises(SystemExit):
        main([*words, path, "--model", str(tmp_path)])
    said = f"{path} has no column '{missing}', but q, a: name yours by {option} COLUMN."
    assert said in capsys.readouterr().err


def test_rows_that_cannot_be_used_are_left_out_when_told(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = export(tiny_model_dir, tmp_path / "model")
    (tmp_path / "all").mkdir()
    whole = score(model, tmp_path / "all")
    rows = [ROWS[1], {"prompt": "", "completion": "good "}, ROWS[3], ROWS[4]]
    data, output = write_jsonl(tmp_path / "some.jsonl", rows), tmp_path / "some.out"
    words = ["score", "--model", str(model), "--data", str(data), "--output", str(output)]
    with pytest.raises(SystemExit):
        main(words)
    main([*words, "--batch_size", "1", "--invalid", "drop"])
    found = [row["score"] for row in read_lines(output)]
    assert found == [whole[1], None, whole[3], None]  # the last one's answer is empty
