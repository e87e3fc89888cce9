"""Records that occur again or contradict each other: kept, left out and counted, or the end of the run."""

import logging
from itertools import combinations
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    PreferenceDataModule,
    RankedDataModule,
    Repeats,
    RowsSource,
    UnpairedDataModule,
)
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.testing import tiny_preferences

ROWS = tiny_preferences(6)
TURNED = {**ROWS[1], "chosen": ROWS[1]["rejected"], "rejected": ROWS[1]["chosen"]}
AGAIN = [*ROWS, ROWS[0], {**ROWS[0], "margin": 2.0}, TURNED, TURNED]


def prepared(
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    kind: type = PreferenceDataModule,
    **repeats: Any,
) -> Any:
    options = {"repeats": Repeats(**repeats)} if repeats else {}
    module = kind(RowsSource(rows), tokenizer=tokenizer, batch_size=1, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def rows_used(module: Any) -> list[int]:
    rows = module.rows["train"]
    return [rows[i]["row"] for i in range(len(rows))]


def test_all_are_kept_where_nothing_is_said_and_contradictions_counted(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        module = prepared(AGAIN, tokenizer)
        assert rows_used(module) == list(range(10))
        assert "2 say the opposite of an earlier one (repeats.contradicting: drop" in caplog.text
        caplog.clear()
        prepared([*ROWS, ROWS[0]], tokenizer)  # again, which is no contradiction
        prepared(AGAIN, tokenizer, contradicting="drop")
        assert "the opposite" not in caplog.text
    labels = [{"prompt": "q", "completion": "a", "label": each} for each in (True, False)]
    found = prepared([*labels, {**labels[0], "completion": "b"}], tokenizer, UnpairedDataModule)
    assert found.reports["train"].contradicting == 1


def test_the_first_of_the_same_is_kept(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        module = prepared(AGAIN, tokenizer, duplicates="drop")
    assert rows_used(module) == [0, 1, 2, 3, 4, 5, 8]
    assert module.reports["train"].counts == {"repeats an earlier one": 3}
    assert "row 7: the first is that of rows in memory, row 1" in caplog.text


def test_both_sides_of_a_contradiction_go(tokenizer: PreTrainedTokenizerFast) -> None:
    module = prepared(AGAIN, tokenizer, contradicting="drop", duplicates="drop")
    assert rows_used(module) == [0, 2, 3, 4, 5]
    assert module.reports["train"].counts == {
        "contradicts another one": 3,
        "repeats an earlier one": 2,
    }
    assert module.reports["train"].brief().startswith("rows in memory: 5 of 10 rows used")


@pytest.mark.parametrize("name", ["duplicates", "contradicting"])
def test_error_ends_the_run_with_counts_and_the_way_out(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=rf"3 left out, .*set repeats\.{name}: drop or keep"):
        prepared(AGAIN, tokenizer, **{name: "error"})
    assert rows_used(prepared(ROWS, tokenizer, **{name: "error"})) == list(range(6))


def test_they_are_no_rows_that_cannot_be_used(tokenizer: PreTrainedTokenizerFast) -> None:
    module = prepared([ROWS[0]] * 9, tokenizer, duplicates="drop")  # max_invalid is a half
    assert rows_used(module) == [0]


def test_rankings_and_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    lists = [
        {"prompt": "q", "completions": ["a", "b", "c"], "scores": scores}
        for scores in ([3, 2, 1], [3, 1, 2], [3, 2, 2])
    ]
    lists.append({**lists[0], "prompt": "r"})
    assert rows_used(prepared(lists, tokenizer, RankedDataModule, contradicting="drop")) == [2, 3]
    label = {"prompt": "q", "completion": "a", "label": True}
    labels = [label, label, {**label, "label": False}, {**label, "completion": "b", "label": False}]
    assert rows_used(prepared(labels, tokenizer, UnpairedDataModule, contradicting="drop")) == [3]
    assert rows_used(prepared(labels, tokenizer, UnpairedDataModule, duplicates="drop")) == [
        0,
        2,
        3,
    ]


def test_the_cache_tells_them_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    modules = [
        prepared(AGAIN, tokenizer, **options)
        for options in ({}, {"duplicates": "drop"}, {"contradicting": "drop"})
    ]
    assert all(one.dataset_hash != other.dataset_hash for one, other in combinations(modules, 2))


def test_odd_values_are_refused() -> None:
    for name in ("duplicates", "contradicting"):
        with pytest.raises(
            ConfigurationError, match=f"Repeats.{name}='first'.* keep, drop or error"
        ):
            Repeats(**{name: "first"})
