"""Records that are spread over neighbouring rows: rated answers to one prompt, the messages of one tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlhf.data.conversion import Columns
from lit_rlhf.data.formats.answers import HelpSteer2Ratings
from lit_rlhf.data.formats.rankings import rankings_of_tree
from lit_rlhf.data.records import (
    FieldValue,
    InvalidRowError,
    Record,
    Row,
    UnreadableRow,
    check_number,
    ordered_pairs,
    read_number,
    read_value,
    rows_of_group,
    shorten,
)


@dataclass(frozen=True)
class HelpSteer2Pairs(HelpSteer2Ratings):
    """Neighbouring rows with one prompt and rated answers, as pairs (HelpSteer2): the higher rating is preferred.

    Of more than two answers, all pairs whose ratings differ. A prompt with one answer alone, or whose answers are all
    rated alike, gives no pair, and is counted.

    Args:
        prompt: Column of the prompt.
        completion: Column of the answer.
        label: Not read.
        score: Column of the rating: helpfulness, or another attribute.
        low: Smallest rating.
        high: Largest rating.
        attributes: See `Unpaired`; of a pair, the better answer's ratings come first.
        with_margin: Whether the difference of ratings goes into the field `margin`.
    """

    with_margin: bool = True

    def groups_by(self) -> str | None:
        """The prompt."""
        return self.prompt

    def __call__(self, row: Row) -> list[Record]:
        """One record with two completions for each two answers whose ratings differ."""
        rows = rows_of_group(row)
        rated = [record for each in rows for record in HelpSteer2Ratings.__call__(self, each)]
        if len(rated) < 2:
            raise InvalidRowError(
                "prompt with one answer", "no neighbouring row has the same prompt"
            )
        column, pairs = self.score or self.label, []
        scores = [read_number(each, column) for each in rows]
        for better, worse, margin in ordered_pairs(scores):
            answers = rated[better].completions[0], rated[worse].completions[0]
            fields: dict[str, FieldValue] = {"margin": margin} if self.with_margin else {}
            if self.attributes:
                fields["attributes"] = self.ratings(rows[better]) + self.ratings(rows[worse])
            pairs.append(Record(rated[better].prompt, answers, fields))
        if not pairs:
            raise InvalidRowError("pair of equals", f"all answers have {column!r} {scores[0]:g}")
        return pairs


@dataclass(frozen=True)
class ConversationTreeRows(Columns):
    """Trees of messages with ranked answers, one message a row (OASST1 and 2): neighbours of one tree are put together.

    What then becomes of a tree: see `ConversationTree`. A tree whose rows don't stand together is counted as one that
    lacks messages.

    Args:
        tree: Column that names the tree.
        message: Column that names the message.
        parent: Column that names the message that it replies to, none for the first of a tree.
        text: Column of its text.
        role: Column of its role: `prompter` or `assistant`.
        rank: Column of its rank among the replies, 0 the best.
    """

    tree: str = "message_tree_id"
    message: str = "message_id"
    parent: str = "parent_id"
    text: str = "text"
    role: str = "role"
    rank: str = "rank"

    def reads(self) -> tuple[str, ...]:
        """All of them."""
        return self.tree, self.message, self.parent, self.text, self.role, self.rank

    def recognises(self, rows: Sequence[Row]) -> bool:
        """Whether all rows have the columns and one tree has a ranking: many trees have none."""
        named = all(
            not isinstance(row, UnreadableRow) and set(self.reads()) <= row.keys() for row in rows
        )
        return named and any(map(self.reads_row, rows))

    def groups_by(self) -> str | None:
        """The tree."""
        return self.tree

    def __call__(self, row: Row) -> list[Record]:
        """As many records as there are rankings in the tree."""
        nodes: dict[Any, dict[str, Any]] = {}
        for each in rows_of_group(row):
            name, rank = read_value(each, self.message), each.get(self.rank)
            if name in nodes:
                raise InvalidRowError("tree with a message twice", f"{self.message!r} is {name!r}")
            nodes[name] = {
                "text": read_value(each, self.text),
                "role": read_value(each, self.role),
                "rank": None if rank is None else check_number(rank, self.rank),
                "parent": each.get(self.parent),
                "replies": [],
            }
        roots: list[dict[str, Any]] = []
        for node in nodes.values():
            above = nodes.get(node["parent"])
            (roots if above is None else above["replies"]).append(node)
        if len(roots) != 1 or roots[0]["parent"] is not None:
            lacking = [node["parent"] for node in roots if node["parent"] is not None]
            raise InvalidRowError(
                "tree that lacks messages",
                f"the neighbouring rows of tree {row[self.tree]!r} have {len(roots)} messages that reply to none of "
                f"them (they reply to {shorten(lacking)}), and need one; sort the rows by {self.tree!r}",
            )
        return rankings_of_tree(roots[0])
