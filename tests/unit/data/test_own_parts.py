"""Formats and sources of one's own that give something else than records and rows."""

from datetime import date
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    Format,
    PreferenceDataModule,
    PromptDataModule,
    Record,
    RowsSource,
    Source,
)
from lit_rlhf.errors import ConfigurationError, DataError
from tests.unit.data.contract import ready

PAIR = {"prompt": "p", "chosen": " a", "rejected": " b"}


@pytest.mark.parametrize("made", [Record("p", ("a", "b")), [("p", "a", "b")], {"prompt": "p"}])
def test_a_format_that_makes_no_records_is_named(
    made: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    class Own(Format):
        def __call__(self, row: Any) -> Any:
            del row
            return made

    with pytest.raises(ConfigurationError, match=r"row 1: it must make a list of Record"):
        ready(PreferenceDataModule(RowsSource([PAIR]), tokenizer=tokenizer, format=Own()))


def test_columns_that_rewards_cant_get_are_named_with_the_way(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "p", "at": date(2026, 1, 2)}]
    with pytest.raises(DataError, match=r"'at': 'date'.*format PromptOnly, with their names"):
        ready(PromptDataModule(RowsSource(rows), tokenizer=tokenizer))


class Own(Source):
    """What `load` gives."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def load(self) -> Any:
        return self.rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "Own.load gave None"),
        ([("p", "a", "b")], r"Own.load gave \('p', 'a', 'b'\)"),
        (iter([PAIR]), "must begin anew at each call"),
    ],
)
def test_sources_of_ones_own_that_give_no_rows_are_named(
    rows: Any, said: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises((ConfigurationError, DataError), match=said):
        ready(PreferenceDataModule(Own(rows), tokenizer=tokenizer))


class OfRow(Format):
    """A record of what its first row says, and sound ones of the others."""

    def __init__(self, first: Record) -> None:
        self.first = first

    def __call__(self, row: Any) -> list[Record]:
        number = row["number"]
        return [self.first if number == 0 else Record(f"p{number}", (" a", " b"), {"margin": 1.0})]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (Record("p", ("a", "b"), {"margin": "much"}), "'margin' is no number"),
        (Record("p", ("a", "b"), {"margin": None}), "'margin' is no number"),
        (Record("p", ("a", "b"), {"margin": float("nan")}), "'margin' is out of range"),
        (Record("p", ("a", "b"), {"p_chosen": 2.0}), "'p_chosen' is out of range"),
        (Record("p", ("a", None)), "the format's completion is neither text nor messages"),
        (Record(3, ("a", "b")), "the format's prompt is neither text nor messages"),
    ],
)
def test_a_record_that_batches_cant_hold_is_left_out_and_counted(
    record: Record, said: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = RowsSource([{"number": number} for number in range(4)])
    data = ready(PreferenceDataModule(rows, tokenizer=tokenizer, format=OfRow(record)))
    assert [said in reason or reason in said for reason in data.reports["train"].counts] == [True]
    assert len(data.rows["train"]) == 3


@pytest.mark.parametrize("margin", [np.float32(0.5), np.int64(1), "0.5", True])
def test_numbers_of_every_kind_go_into_batches(
    margin: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = Record("p", ("a", "b"), {"margin": margin})
    rows = RowsSource([{"number": number} for number in range(4)])
    data = ready(PreferenceDataModule(rows, tokenizer=tokenizer, format=OfRow(first), batch_size=4))
    (batch,) = data.train_dataloader()
    assert sorted(batch["margin"].tolist()) == sorted([float(margin), 1.0, 1.0, 1.0])
