"""What rows become: pairs, rankings and sets of any format; nothing is lost without a count."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.data import ExplicitPrompt, FileSource, RowsSource
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.evaluation import Comparison, read_comparisons
from lit_rlhf.evaluation.texts import FEATURES, POLITE, changed, doubled_spaces, turned_round
from tests.unit.data.shape_cases import CASES

SHAPES = Path(__file__).parents[1] / "data" / "shapes"
COMPARED = sorted(name for name, case in CASES.items() if case[0] in ("Preference", "Ranked"))
PAIR = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}


def one(**row: Any) -> Comparison:
    return read_comparisons(RowsSource([row])).items[0]


@pytest.mark.parametrize("name", COMPARED)
def test_every_shape_of_pairs_and_rankings_is_read(name: str) -> None:
    path = SHAPES / f"{name}.jsonl"
    found = read_comparisons(FileSource(str(path)))
    first = found.items[0]
    assert len(first.answers) == len(CASES[name][3])
    assert len(found.items) == CASES[name][5]
    better, worse = first.pairs()[0]
    assert first.values[better] > first.values[worse]
    assert {"Preference": "pair", "Ranked": "ranking"}[CASES[name][0]] == first.kind or (
        name == "reward_bench_2" and first.kind == "sets"
    )


def test_others_are_refused_with_what_they_are() -> None:
    rows = RowsSource([{"prompt": "a", "completion": "b"}])
    with pytest.raises(ConfigurationError, match=r"are demonstrations, read by Demonstration\(\)"):
        read_comparisons(rows)


def test_soft_labels_turn_the_pair_so_that_the_better_one_comes_first() -> None:
    found = one(**PAIR, p_chosen=0.25, votes=8, subset="sums", id=7)
    assert found.answers == (" 5", " 4")
    assert (found.p_chosen, found.votes, found.subset, found.name) == (0.75, 8, "sums", "7")
    assert read_comparisons(RowsSource([{**PAIR, "p_chosen": 1.0}])).soft
    assert not read_comparisons(RowsSource([PAIR])).soft


def test_a_column_of_another_name_says_the_subset() -> None:
    rows = RowsSource([{**PAIR, "domain": "code"}, PAIR])
    assert [c.subset for c in read_comparisons(rows, subset="domain").items] == ["code", ""]


def test_reward_bench_2_is_sets_with_its_names() -> None:
    found = read_comparisons(FileSource(str(SHAPES / "reward_bench_2.jsonl")))
    assert [c.subset for c in found.items] == ["Factuality", "Ties"]
    assert found.items[1].name == "tied:0"
    assert found.items[0].pairs() == [(0, 1), (0, 2), (0, 3)]
    assert found.items[1].pairs() == [(0, 2), (1, 2)]
    assert [c.chance for c in found.items] == [0.25, 2 / 3]


def test_what_cannot_be_used_is_counted_by_reason_or_ends_it() -> None:
    rows = [PAIR, {**PAIR, "rejected": " 4"}, {**PAIR, "chosen": "  "}, {"prompt": "a"}]
    found = read_comparisons(RowsSource(rows), ExplicitPrompt())
    assert len(found.items) == 1
    assert found.left_out == {"identical pair": 1, "empty completion": 1, "no column 'chosen'": 1}
    with pytest.raises(DataError, match="row 2: identical pair"):
        read_comparisons(RowsSource(rows), ExplicitPrompt(), invalid="error")
    with pytest.raises(DataError, match=r"holds no answers to compare. The first: .*row 1: iden"):
        read_comparisons(RowsSource(rows[1:2]), ExplicitPrompt())


def test_changes_reach_the_last_turn_alone() -> None:
    turns = ({"role": "assistant", "content": "a b"}, {"role": "assistant", "content": "c d"})
    first, second = list(turns), [turns[0], {"role": "assistant", "content": "e"}]
    pair = Comparison([{"role": "user", "content": "q q"}], (first, second), (1.0, 0.0))
    after = changed(pair, doubled_spaces)
    assert json.dumps(after.answers).count("c  d") == 1
    assert "a b" in json.dumps(after.answers)
    assert after.prompt == pair.prompt
    ended = changed(pair, lambda text: text + POLITE, only=1)
    assert ended.answers[0] == pair.answers[0]
    assert ended.answers[1][-1]["content"] == "e" + POLITE
    assert turned_round(pair).pairs() == [(0, 1)]
    assert turned_round(pair).answers == (second, first)


@pytest.mark.parametrize(
    ("text", "items", "marks"),
    [
        ("plain - text, 3. of it", 0, 0),
        ("- a\n- b\n  * c\n1. d\n2) e", 5, 0),
        ("# Head\n**bold** and `code` and [a](b)\n> quote", 0, 5),
        ("2 * 3 * 4 and a_b_c", 0, 0),
    ],
)
def test_features_count_what_they_say(text: str, items: int, marks: int) -> None:
    assert FEATURES["list items"](text) == items
    assert FEATURES["markdown"](text) == marks
