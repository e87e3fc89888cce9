"""Formats and sources of one's own that give something else than records and rows."""

from datetime import date
from typing import Any

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
