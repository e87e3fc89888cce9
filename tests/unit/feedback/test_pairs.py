import logging
from pathlib import Path

import pytest

from lit_rlhf.data import (
    ExplicitPrompt,
    FileSource,
    HelpSteer2Pairs,
    ImplicitPrompt,
    Ranked,
    RowsSource,
)
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import Pair, read_labelled_pairs, read_pairs
from lit_rlhf.testing import tiny_preferences, write_jsonl

ROW = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}


def test_a_file_of_preferences(tmp_path: Path) -> None:
    rows = tiny_preferences(5)
    found = read_pairs(FileSource(str(write_jsonl(tmp_path / "pairs.jsonl", rows))))
    assert [(pair.prompt, pair.first, pair.second) for pair in found] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("row", "format", "pairs"),
    [
        ({"prompt": "p", "completions": ["a", "b", "c"]}, None, ["ab", "ac", "bc"]),
        ({"prompt": "p", "completions": ["a", "b", "a"]}, None, ["ab"]),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}, Ranked(), ["ab"]),
        ({"q": "p", "x": "a", "y": "b"}, ExplicitPrompt("q", "x", "y"), ["ab"]),
        (
            {"chosen": "H\n\nAssistant:a", "rejected": "H\n\nAssistant:b"},
            ImplicitPrompt(),
            ["ab"],
        ),
    ],
)
def test_formats(row: dict, format, pairs: list[str]) -> None:
    found = read_pairs(RowsSource([row]), format)
    assert [f"{pair.first}{pair.second}" for pair in found] == pairs


def test_messages_stay_messages() -> None:
    prompt = [{"role": "user", "content": "hi"}]
    (pair,) = read_pairs(RowsSource([{"prompt": prompt, "chosen": "hello", "rejected": "go"}]))
    assert pair.prompt == prompt
    assert pair.first == [{"role": "assistant", "content": "hello"}]
    assert Pair.of(pair.content, None) == pair


def test_equal_rows_are_one_pair() -> None:
    assert len(read_pairs(RowsSource([ROW, ROW]))) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, r"row 2: no column 'rejected'"),
        ({**ROW, "rejected": "4"}, r"row 2: identical pair: both answers are '4'"),
        ({"prompt": "p", "completions": ["a", "a"]}, r"row 2: fewer than two answers"),
        ({"prompt": "p", "completions": "ab"}, r"row 2: column 'completions' is no list"),
        ({**ROW, "prompt": ""}, r"row 2: empty prompt"),
    ],
)
def test_a_bad_row_is_named(row: dict, said: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = RowsSource([ROW, row])
    with pytest.raises(DataError, match=said):
        read_pairs(rows)
    with caplog.at_level(logging.WARNING):
        assert len(read_pairs(rows, invalid="drop")) == 1
    assert "1 rows were left out, the first: rows in memory, row 2" in caplog.text


def test_uncertainty_is_a_number() -> None:
    (pair,) = read_pairs(RowsSource([{**ROW, "std": "0.5"}]), uncertainty="std")
    assert pair.uncertainty == 0.5
    with pytest.raises(DataError, match="row 1: no column 'std'"):
        read_pairs(RowsSource([ROW]), uncertainty="std")


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="holds no pair of answers"):
        read_pairs(RowsSource([]))


def test_neighbouring_rows_are_read_together() -> None:
    rows = [{"prompt": "q", "response": a, "helpfulness": n} for n, a in enumerate("ab")]
    (pair,) = read_pairs(RowsSource(rows), HelpSteer2Pairs())
    assert (pair.prompt, pair.first, pair.second) == ("q", "b", "a")
    found, _ = read_labelled_pairs(RowsSource(rows), HelpSteer2Pairs())
    assert [(each.first, each.label) for each in found] == [("b", 1.0)]
