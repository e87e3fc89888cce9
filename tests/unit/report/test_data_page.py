"""The report of data: hostile rows stay text, every section stands where there is something to say."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import RowsSource
from lit_rlhf.data.inspection import inspect
from lit_rlhf.report.data_page import report_data
from lit_rlhf.testing import make_tokenizer
from tests.unit.data.inspection.test_inspect import KINDS, pairs
from tests.unit.report.test_page import HOSTILE, Reader


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def write(tmp_path: Path, splits: Any, **options: Any) -> tuple[Reader, dict[str, Any]]:
    path = report_data(inspect(splits, **options), tmp_path / "a.html")
    return Reader(path.read_text()), json.loads(path.with_suffix(".json").read_text())


def test_hostile_rows_stay_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {
        "prompt": HOSTILE,
        "chosen": f"{HOSTILE}</s>",
        "rejected": f"{HOSTILE} no",
        "source": HOSTILE,
    }
    rows = [row, row, {**row, "chosen": row["rejected"], "rejected": row["chosen"]}]
    rows += [{"prompt": "p", "chosen": HOSTILE, "rejected": HOSTILE, "source": "<b>"}]
    splits = {"<i>train": RowsSource(rows, HOSTILE), "val": RowsSource(rows, HOSTILE)}
    found, beside = write(
        tmp_path, splits, tokenizer=tokenizer, against={HOSTILE: RowsSource(rows)}
    )
    assert found.tags.count("script") == 3
    assert not {"img", "i"} & set(found.tags)
    assert found.texts.count(HOSTILE) > 5
    assert beside["splits"][0]["samples"][0]["texts"][0] == ["prompt", HOSTILE]


def test_sections_and_numbers(tmp_path: Path) -> None:
    rows = [{**row, "source": "web", "margin": 1.0} for row in pairs(40)]
    rows += [rows[0], {**rows[1], "chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]}]
    splits = {"train": RowsSource(rows), "val": RowsSource(rows[:5])}
    found, beside = write(tmp_path, splits)
    text = " ".join(found.texts)
    for title in (
        "At a glance",
        "Rows",
        "Lengths",
        "Better against worse answers",
        "Labels and raters",
        "Repetitions and contradictions",
        "Leakage",
        "Endings, special tokens and templates",
        "Samples",
    ):
        assert title in text
    assert "val stands in train: 5 of its 5 rows (100 %)" in text
    assert {each["text"] for each in beside["findings"]} & set(found.texts)
    assert beside["splits"][0]["doubles"]["repeated"] == 1
    assert sum(beside["splits"][0]["lengths"]["parts"]["chosen"]["counts"].values()) == 42
    drawn = [spec["data"]["values"] for spec in found.specs]
    assert all(drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [KINDS[kind](n) for n in range(30)]
    for options in ({}, {"tokenizer": tokenizer}):
        found, _ = write(tmp_path, RowsSource(rows), similarity=None, **options)
        assert "Samples" in found.texts


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3
    found, beside = write(tmp_path, RowsSource(rows))
    assert "3 of 3 pairs (100 %) are left out: identical pair 3." in found.texts
    assert beside["splits"][0]["records"] == 0
