"""Data of a TRL script, and values that it cannot take."""

import re
from pathlib import Path

import pytest

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
    assert not {"bias", "lora_task_type"} & set(re.findall(r"(?m)^#   (\w+):", written))


def test_a_value_of_another_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        translated(
            tmp_path, "num_generations: four\nper_device_train_batch_size: 8", "--task", "grpo"
        )
    assert ended.value.code == 2
    assert "per_device_train_batch_size=8 can't be carried over" in capsys.readouterr().err
