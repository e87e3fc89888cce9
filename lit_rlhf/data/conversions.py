"""Formats made of formats: pairs to single examples, rankings to pairs, plain text to conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from lit_rlhf.data.formats import Format
from lit_rlhf.data.records import InvalidRowError, Message, Record, Row, Text


@dataclass(frozen=True)
class AsChat(Format):
    """Plain text as a conversation: the prompt becomes the user's turn, each completion the assistant's.

    Args:
        format: Gives records of plain text.
        system: A system turn to put in front. None: no system turn.

    Example:
        >>> from lit_rlhf.data import ExplicitPrompt
        >>> row = {"prompt": "hi", "chosen": "hello", "rejected": "go"}
        >>> AsChat(ExplicitPrompt())(row)[0].prompt
        [{'role': 'user', 'content': 'hi'}]
    """

    format: Format
    system: str | None = None

    def __call__(self, row: Row) -> list[Record]:
        """The same records, with messages for text."""
        head: list[Message] = (
            [] if self.system is None else [{"role": "system", "content": self.system}]
        )
        return [
            Record(
                prompt=[*head, *_turn("user", record.prompt)],
                completions=tuple(
                    _turn("assistant", completion) for completion in record.completions
                ),
                fields=record.fields,
                columns=record.columns,
            )
            for record in self.format(row)
        ]


@dataclass(frozen=True)
class PromptsOf(Format):
    """The prompts of other data, such as those of preference pairs, to roll out from.

    Args:
        format: Gives the records whose prompts are taken.
    """

    format: Format

    def __call__(self, row: Row) -> list[Record]:
        """Records without completions."""
        return [Record(record.prompt) for record in self.format(row)]


@dataclass(frozen=True)
class ChosenOf(Format):
    """The preferred completions of pairs, as demonstrations.

    Args:
        format: Gives the pairs.
    """

    format: Format

    def __call__(self, row: Row) -> list[Record]:
        """Records with the first completion alone."""
        return [Record(record.prompt, record.completions[:1]) for record in self.format(row)]


@dataclass(frozen=True)
class UnpairedFromPairs(Format):
    """Each pair as two single examples: the chosen one desirable, the rejected one not.

    Args:
        format: Gives the pairs.
    """

    format: Format

    def __call__(self, row: Row) -> list[Record]:
        """Two records per pair, with the field `label`."""
        return [
            Record(record.prompt, (completion,), {"label": label})
            for record in self.format(row)
            for completion, label in zip(record.completions, (True, False), strict=True)
        ]


@dataclass(frozen=True)
class PairsFromRanking(Format):
    """Each ranking as all its pairs whose scores differ; the margin is the difference.

    The pairs of one prompt are correlated: a model that sees them in several steps overfits (arXiv 2203.02155). Where
    the loss takes lists, feed the ranking itself.

    Args:
        format: Gives rankings, records with the field `score`.
        with_margin: Whether the difference of scores goes into the field `margin`.
    """

    format: Format
    with_margin: bool = True

    def __call__(self, row: Row) -> list[Record]:
        """Up to K (K - 1) / 2 records with two completions."""
        pairs = [pair for record in self.format(row) for pair in self._pairs(record)]
        if not pairs:
            raise InvalidRowError(
                "ranking of ties", "all scores are equal, so no completion is preferred"
            )
        return pairs

    def _pairs(self, record: Record) -> list[Record]:
        scores = record.fields.get("score")
        if not isinstance(scores, tuple):
            raise TypeError(
                f"PairsFromRanking needs a format that gives rankings, got {type(self.format).__name__}"
            )
        pairs = []
        for first, second in combinations(range(len(scores)), 2):
            better, worse = (first, second) if scores[first] > scores[second] else (second, first)
            margin = scores[better] - scores[worse]
            if margin > 0:
                completions = (record.completions[better], record.completions[worse])
                pairs.append(
                    Record(
                        record.prompt, completions, {"margin": margin} if self.with_margin else {}
                    )
                )
        return pairs


def _turn(role: str, text: Text) -> Sequence[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
