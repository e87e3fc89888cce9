"""Formats that read neighbouring rows together: pairs of rated answers, trees of messages; each row used or counted."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    AsChat,
    ConversationTree,
    ConversationTreeRows,
    FileSource,
    HelpSteer2Pairs,
    HelpSteer2Ratings,
    InvalidRowError,
    PreferenceDataModule,
    RankedDataModule,
    RowsSource,
    UnpairedDataModule,
)
from lit_rlhf.data.conversion import grouped
from lit_rlhf.data.formats import group_rows
from lit_rlhf.data.records import RowGroup, rows_of_group

SHAPES = Path(__file__).parent / "shapes"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHAPES / f"{name}.jsonl").read_text().splitlines()]


def rated(*scores: float, prompt: str = "q") -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "response": f"a{n}", "helpfulness": score}
        for n, score in enumerate(scores)
    ]


class TestHelpSteer2Pairs:
    def test_all_pairs_that_differ_with_their_margins(self) -> None:
        records = HelpSteer2Pairs()(RowGroup(rated(1, 4, 4)))
        assert [(r.completions, r.fields["margin"]) for r in records] == [
            (("a1", "a0"), 3.0),
            (("a2", "a0"), 3.0),
        ]
        assert HelpSteer2Pairs(with_margin=False)(RowGroup(rated(1, 4)))[0].fields == {}

    @pytest.mark.parametrize(
        ("scores", "reason"),
        [((3,), "prompt with one answer"), ((2, 2), "pair of equals"), ((2, 9), "out of range")],
    )
    def test_what_gives_no_pair_has_a_reason(self, scores: tuple[float, ...], reason: str) -> None:
        with pytest.raises(InvalidRowError, match=reason):
            HelpSteer2Pairs()(RowGroup(rated(*scores)))

    def test_pairs_are_counted_and_the_rows_of_the_file_named(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        source = FileSource(str(SHAPES / "helpsteer2_neighbours.jsonl"))
        module = PreferenceDataModule(source, tokenizer=tokenizer, batch_size=1)
        module.prepare_data()
        report = module.reports["train"]
        assert report.rows == 7
        assert report.brief().endswith(
            "2 of 4 pairs of 7 rows used; 1 left out, pair of equals; 1 left out, prompt with one answer"
        )
        assert "neighbours.jsonl, row 5" in report.reasons["pair of equals"].first
        assert "neighbours.jsonl, row 7" in report.reasons["prompt with one answer"].first

    def test_the_format_may_be_set_and_wrapped(self, tokenizer: PreTrainedTokenizerFast) -> None:
        module = PreferenceDataModule(
            RowsSource(rated(0, 4)),
            tokenizer=tokenizer,
            batch_size=1,
            format=AsChat(HelpSteer2Pairs()),
        )
        module.prepare_data()
        assert module.reports["train"].records == 1

    def test_ratings_stay_single_where_single_answers_are_wanted(
        self, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        module = UnpairedDataModule(RowsSource(rated(0, 4)), tokenizer=tokenizer, batch_size=1)
        module.prepare_data()
        assert module.reports["train"].records == 2


class TestConversationTreeRows:
    def test_the_same_rankings_as_of_whole_trees(self) -> None:
        whole = [record for row in read("oasst_trees") for record in ConversationTree()(row)]
        groups = group_rows(read("oasst_rows"), ConversationTreeRows())
        assert [record for row in groups for record in ConversationTreeRows()(row)] == whole != []

    def test_the_order_within_a_tree_does_not_matter(self) -> None:
        rows = read("oasst_rows")
        tree = [row for row in rows if row["message_tree_id"] == "t1"]
        shuffled = random.Random(0).sample(tree, len(tree))
        found, expected = (
            {
                (
                    json.dumps(r.prompt),
                    frozenset(zip(map(str, r.completions), r.fields["score"], strict=True)),
                )
                for r in ConversationTreeRows()(RowGroup(each))
            }
            for each in (shuffled, tree)
        )
        assert found == expected

    def test_trees_that_are_torn_are_counted(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = read("oasst_rows")
        torn = [{**row, "message_tree_id": "t2"} for row in rows if row["parent_id"] is not None]
        one = [{**rows[0], "message_tree_id": "t3"}]
        module = RankedDataModule(
            RowsSource([*torn, *one, *rows]), tokenizer=tokenizer, batch_size=1
        )
        module.prepare_data()
        report = module.reports["train"]
        assert report.counts == {"tree that lacks messages": 1, "tree without ranked replies": 1}
        assert (report.rows, report.records) == (len(rows) + len(torn) + 1, 2)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"a": {"parent_id": "b"}}, "lacks messages"),  # a circle
            ({"b": {"message_id": "a"}}, "message twice"),
            ({"b": {"parent_id": None}}, "lacks messages"),  # two beginnings
            ({"b": {"rank": "first"}}, "is no number"),
            ({"c": {"rank": None}}, "without ranked replies"),
        ],
    )
    def test_odd_trees(self, changes: dict[str, dict[str, Any]], reason: str) -> None:
        common = {"message_tree_id": "t", "role": "assistant", "text": "x", "parent_id": "a"}
        rows: list[dict[str, Any]] = [
            {**common, "message_id": "a", "role": "prompter", "parent_id": None, "rank": None},
            {**common, "message_id": "b", "rank": 0},
            {**common, "message_id": "c", "rank": 1},
        ]
        assert len(ConversationTreeRows()(RowGroup(rows))) == 1
        changed = [{**row, **changes.get(row["message_id"], {})} for row in rows]
        with pytest.raises(InvalidRowError, match=reason):
            ConversationTreeRows()(RowGroup(changed))


class TestGroups:
    def test_unreadable_rows_and_rows_without_the_column_stand_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        lines = [
            json.dumps(row) for row in [*rated(1, 2), {"x": 1}, {"x": 1}, *rated(3, prompt="r")]
        ]
        path.write_text("\n".join([*lines[:2], "{torn", *lines[2:]]))
        source = grouped(FileSource(str(path)), HelpSteer2Pairs())
        found = list(source.load())
        assert [len(rows_of_group(row)) for row in found] == [2, 1, 1, 1, 1]
        assert source.locate(2) == f"{path}, row 4"

    def test_a_column_that_never_changes_does_not_fill_the_memory(self) -> None:
        groups = [*group_rows(iter(rated(*[1.0] * 1300)), HelpSteer2Pairs())]
        assert [len(rows_of_group(row)) for row in groups] == [512, 512, 276]

    def test_other_formats_read_their_source_as_it_is(self) -> None:
        source = RowsSource([])
        assert grouped(source, ConversationTree()) is source


def test_ratings_by_attribute_go_with_their_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "q", "response": "b", "helpfulness": 1, "correctness": 2, "verbosity": 4},
        {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 0, "verbosity": 1},
    ]
    names = ("helpfulness", "correctness", "verbosity")
    for kind, form, expected in (
        (PreferenceDataModule, HelpSteer2Pairs(attributes=names), [[[3, 0, 1], [1, 2, 4]]]),
        (UnpairedDataModule, HelpSteer2Ratings(attributes=names), [[[1, 2, 4]], [[3, 0, 1]]]),
    ):
        module = kind(RowsSource(rows), tokenizer=tokenizer, format=form, batch_size=2)
        module.prepare_data()
        module.setup("fit")
        split = module.rows["train"]
        batch: Any = module.collator()([split[n] for n in range(len(split))])
        assert batch["attributes"].tolist() == expected
    without = [{name: value for name, value in row.items() if name != "verbosity"} for row in rows]
    with pytest.raises(InvalidRowError, match="verbosity"):
        HelpSteer2Ratings(attributes=names)(without[0])
