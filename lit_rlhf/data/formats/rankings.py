"""Several answers to a prompt, with scores or ranks: in one row, or spread over neighbouring rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lit_rlhf.data.conversion import Columns, Format, Style
from lit_rlhf.data.formats.answers import HelpSteer2Ratings
from lit_rlhf.data.records import (
    FieldValue,
    InvalidRowError,
    Message,
    Record,
    Row,
    UnreadableRow,
    check_completion,
    check_number,
    ordered_pairs,
    read_list,
    read_number,
    read_prompt,
    read_value,
    rows_of_group,
    shorten,
)


@dataclass(frozen=True)
class Ranked(Columns):
    """Several completions of a prompt with a score each, or with ranks.

    Args:
        prompt: Column of the prompt.
        completions: Column with the list of completions.
        scores: Column with the list of their scores; higher is better.
        ranks: Column with the list of their ranks, 1 being the best, instead of scores; a rank r becomes the score -r.
    """

    prompt: str = "prompt"
    completions: str = "completions"
    scores: str = "scores"
    ranks: str | None = None

    @classmethod
    def candidates(cls) -> Sequence[Format]:
        """With scores, or with ranks."""
        return cls(), cls(ranks="ranks")

    def reads(self) -> tuple[str, ...]:
        """Prompt, answers, and scores or ranks."""
        return self.prompt, self.completions, self.ranks or self.scores

    def __call__(self, row: Row) -> list[Record]:
        """One record with K completions and the field `score` of K numbers."""
        prompt = read_prompt(row, self.prompt)
        answers = read_list(row, self.completions)
        column, sign = (self.scores, 1.0) if self.ranks is None else (self.ranks, -1.0)
        scores = tuple(sign * check_number(value, column) for value in read_list(row, column))
        if len(scores) != len(answers):
            raise InvalidRowError(
                f"columns {self.completions!r} and {column!r} differ in length",
                f"{len(answers)} completions, {len(scores)} values",
            )
        completions = tuple(check_completion(a, self.completions, prompt) for a in answers)
        return [Record(prompt, completions, {"score": scores})]


@dataclass(frozen=True)
class RatedAnswers(Columns):
    """Answers in a list, each with its own score: the raw ratings of UltraFeedback (arXiv:2310.01377).

    Args:
        prompt: Column of the instruction.
        completions: Column with the list of answers.
        answer: Key of an answer's text.
        score: Key of its score; higher is better. UltraFeedback's `overall_score` gave 10 to many answers that its
            raters found poor; `fine-grained_score` is the mean of their ratings.
    """

    prompt: str = "instruction"
    completions: str = "completions"
    answer: str = "response"
    score: str = "fine-grained_score"
    style: ClassVar[Style] = "turns"
    needed = ("prompt", "completions")

    def __call__(self, row: Row) -> list[Record]:
        """One record with K completions and the field `score` of K numbers."""
        return [_ranking(row, self, 1.0, self.score)]


@dataclass(frozen=True)
class RankedAnswers(Columns):
    """Answers in a list, each with its rank, 1 being the best: Nectar.

    The prompt is a transcript that ends in `Assistant: `; its last space goes to the answers.

    Args:
        prompt: Column of the prompt.
        completions: Column with the list of answers.
        answer: Key of an answer's text.
        rank: Key of its rank; a rank r becomes the score -r.
    """

    prompt: str = "prompt"
    completions: str = "answers"
    answer: str = "answer"
    rank: str = "rank"
    style: ClassVar[Style] = "transcript"
    needed = ("prompt", "completions")

    def __call__(self, row: Row) -> list[Record]:
        """One record with K completions and the field `score` of K numbers."""
        return [_ranking(row, self, -1.0, self.rank)]


def _ranking(row: Row, names: RatedAnswers | RankedAnswers, sign: float, key: str) -> Record:
    prompt, answers = read_prompt(row, names.prompt), read_list(row, names.completions)
    rated = (isinstance(a, Mapping) and a.get(key) is not None for a in answers)
    if not all(rated) or not all(names.answer in a for a in answers):
        raise InvalidRowError(
            f"an answer of column {names.completions!r} has no text or no {key!r}",
            f"got {shorten(answers)}",
        )
    scores = tuple(sign * check_number(answer[key], key) for answer in answers)
    texts = [answer[names.answer] for answer in answers]
    if isinstance(prompt, str) and prompt.endswith(" "):
        prompt, texts = prompt.rstrip(" "), [f" {text}" for text in texts]
    completions = tuple(check_completion(text, names.completions, prompt) for text in texts)
    return Record(prompt, completions, {"score": scores})


@dataclass(frozen=True)
class AnswerSets(Columns):
    """Lists of good and of bad answers, as in RewardBench 2 (arXiv:2506.01937): a good one scores 1, a bad one 0.

    Args:
        prompt: Column of the prompt.
        chosen: Column with the list of good answers, one or more.
        rejected: Column with the list of bad ones.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    style: ClassVar[Style] = "turns"
    needed = ("prompt", "chosen", "rejected")

    def __call__(self, row: Row) -> list[Record]:
        """One record with K completions and the field `score` of K numbers."""
        prompt = read_prompt(row, self.prompt)
        names = self.chosen, self.rejected
        lists = [(name, read_list(row, name, least=1)) for name in names]
        for name, answers in lists:
            if not all(isinstance(answer, str) for answer in answers):
                raise InvalidRowError(
                    f"column {name!r} is no list of texts", f"got {shorten(answers)}"
                )
        completions = tuple(check_completion(a, name, prompt) for name, each in lists for a in each)
        good, bad = (len(answers) for _, answers in lists)
        return [Record(prompt, completions, {"score": (1.0,) * good + (0.0,) * bad})]


@dataclass(frozen=True)
class ConversationTree(Columns):
    """Trees of messages whose answers were ranked: OpenAssistant (OASST1 and 2, arXiv:2304.07327).

    Wherever two or more of the assistant's replies to one message have a rank, they make a ranking, with all turns
    before as the prompt. A rank r, 0 being the best, becomes the score -r; replies without one are left out of it.

    Args:
        root: Column with the tree's first message: `text`, `role` and the list `replies`.
    """

    root: str = "prompt"
    needed = ("root",)

    def __call__(self, row: Row) -> list[Record]:
        """As many records as there are rankings."""
        tree = read_value(row, self.root)
        if not isinstance(tree, Mapping) or "replies" not in tree:
            raise InvalidRowError(f"column {self.root!r} is no tree", f"got {shorten(tree)}")
        return rankings_of_tree(tree)


def rankings_of_tree(tree: Mapping[str, Any]) -> list[Record]:
    """The rankings of a tree of messages, each with its `text`, `role`, `rank` and `replies`.

    Raises:
        InvalidRowError: There are none.
    """
    records = list(_rankings_below(tree, []))
    if not records:
        raise InvalidRowError(
            "tree without ranked replies", "no message has two replies with a rank"
        )
    return records


def _rankings_below(node: Mapping[str, Any], before: list[Message]) -> Iterator[Record]:
    role = {"prompter": "user"}.get(node["role"], node["role"])
    turns = [*before, {"role": role, "content": node["text"]}]
    replies = node.get("replies") or []
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    if role == "user" and len(ranked) > 1:
        answers = tuple([{"role": "assistant", "content": reply["text"]}] for reply in ranked)
        yield Record(turns, answers, {"score": tuple(0.0 - reply["rank"] for reply in ranked)})
    for reply in replies:
        yield from _rankings_below(reply, turns)


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
    needed = ("tree", "message", "parent", "text", "role", "rank")

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
