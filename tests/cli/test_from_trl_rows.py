"""Data of a TRL script, and values that it cannot take."""

import re
from pathlib import Path

import pytest

from lit_rlhf.cli.main import main
from tests.cli.test_from_trl import translated

ROWS = """
from datasets import Dataset, load_dataset
from peft import LoraConfig, TaskType
from trl import RewardConfig, RewardTrainer

rows = {rows}
RewardTrainer(
    "org/model",
    args=RewardConfig("out", eval_strategy="epoch"),
    train_dataset=rows,
    peft_config=LoraConfig(r=4, bias="none", task_type=TaskType.SEQ_CLS),
)
"""


@pytest.mark.parametrize(
    ("rows", "train", "val", "share", "told"),
    [
        ('load_dataset("json", data_files={"train": "a.jsonl"})', "a.jsonl", None, 0.05, ""),
        (
            'load_dataset("json", data_files={"train": ["a.jsonl"], "test": "b.jsonl"})',
            "a.jsonl",
            "b.jsonl",
            0.0,
            "",
        ),
        (
            'load_dataset("json", data_files="a.jsonl").train_test_split(0.2)',
            "a.jsonl",
            None,
            0.2,
            "",
        ),
        (
            'load_dataset("json", data_files="a.jsonl").map(tidy)',
            "a.jsonl",
            None,
            0.05,
            "map(): Rows are read as they lie in the file.",
        ),
        (
            'load_dataset("json", data_files=["a.jsonl", "b.jsonl"])',
            "NAME_YOUR_DATA.jsonl",
            None,
            0.05,
            "load_dataset: `load_dataset('json', data_files=",
        ),
        (
            'load_dataset("json", data_files="a.jsonl")\nheld = load_dataset("json", data_files="b.jsonl")',
            "NAME_YOUR_DATA.jsonl",
            None,
            0.05,
            "load_dataset: It loads several (a.jsonl, b.jsonl)",
        ),
        (
            'load_dataset("json", data_files="a.jsonl").train_test_split(test_size=100)',
            "a.jsonl",
            None,
            0.05,
            "train_test_split(): `",
        ),
        (
            "Dataset.from_list([])",
            "NAME_YOUR_DATA.jsonl",
            None,
            0.05,
            "train_dataset: No `load_dataset`",
        ),
    ],
)
def test_rows_are_the_script_s_or_none(
    rows: str, train: str, val: str | None, share: float, told: str, tmp_path: Path
) -> None:
    """The recipe's own data would train something, in silence."""
    written, made = translated(tmp_path, ROWS.replace("{rows}", rows), name="train.py")
    data = made["data"]["init_args"]
    assert data["train"]["init_args"]["path"] == train
    assert data.get("val", {}).get("init_args", {}).get("path") == val
    assert data["val_fraction"] == share
    assert told in written
    assert len(re.findall(r"(?m)^#   (train_dataset|load_dataset):", written)) <= 1
    assert not {"bias", "lora_task_type"} & set(re.findall(r"(?m)^#   (\w+):", written))


def test_a_value_of_another_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        translated(
            tmp_path, "num_generations: four\nper_device_train_batch_size: 8", "--task", "grpo"
        )
    assert ended.value.code == 2
    assert "per_device_train_batch_size=8 can't be carried over" in capsys.readouterr().err


def test_rows_held_out_are_not_trained_on_where_nothing_is_evaluated(tmp_path: Path) -> None:
    rows = 'load_dataset("json", data_files="a.jsonl").train_test_split(test_size=0.2)'
    script = ROWS.replace("{rows}", rows).replace(', eval_strategy="epoch"', "")
    _, made = translated(tmp_path, script, name="train.py")
    assert made["data"]["init_args"]["val_fraction"] == 0.2


@pytest.mark.parametrize("command", ["from-trl", "init"])
def test_a_directory_is_no_output(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trl.yaml").write_text("beta: 0.1")
    words = ["trl.yaml", "--task", "dpo"] if command == "from-trl" else ["ppo"]
    with pytest.raises(SystemExit) as ended:
        main([command, *words, "--output", "."])
    assert ended.value.code == 2
    assert "names no file, but a directory" in capsys.readouterr().err


def test_a_directory_is_no_script_that_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["from-trl", str(tmp_path)])
    said = capsys.readouterr().err
    assert "There is no file" in said
    assert "Did you mean" not in said
