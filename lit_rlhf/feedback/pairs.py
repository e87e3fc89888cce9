"""Pairs of answers to compare, read by the library's own sources and formats."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeVar

from lit_rlhf.data import ExplicitPrompt, Format, InvalidRowError, Record, Source
from lit_rlhf.data.conversion import grouped, rows_of
from lit_rlhf.data.formats import check_completion, read_prompt
from lit_rlhf.data.records import Row, Text, read_number, read_value, shorten
from lit_rlhf.errors import DataError

WAYS_OUT = (
    "Mend it, name its columns (--format ExplicitPrompt --format.chosen COLUMN --format.rejected COLUMN), or leave "
    "such rows out: --skip_invalid true"
)
"""What is said of a row without two answers."""
Made = TypeVar("Made")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Args:
        prompt: Plain text or messages.
        first: An answer, of the same kind as the prompt.
        second: Another one.
        uncertainty: How unsure a model is which is better; larger is asked earlier. None: not known.
    """

    prompt: Text
    first: Text
    second: Text
    uncertainty: float | None = None

    @property
    def content(self) -> str:
        """Prompt and answers as JSON."""
        return json.dumps([self.prompt, self.first, self.second], sort_keys=True, default=dict)

    @classmethod
    def of(cls, content: str, uncertainty: float | None) -> "Pair":
        """The inverse of `content`."""
        prompt, first, second = json.loads(content)
        return cls(prompt, first, second, uncertainty)

    @property
    def key(self) -> str:
        """A hash of the content: what a pair is known by from one start to the next."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Candidates(Format):
    """Several answers to a prompt that nobody has judged yet.

    Args:
        prompt: Column of the prompt.
        completions: Column with the list of answers.
    """

    prompt: str = "prompt"
    completions: str = "completions"

    def __call__(self, row: Row) -> list[Record]:
        """One record with the answers that differ: samplers write the same one several times.

        Example:
            >>> Candidates()({"prompt": "2 + 2 =", "completions": ["4", "5", "4"]})[0].completions
            ('4', '5')
        """
        prompt, answers = read_prompt(row, self.prompt), read_value(row, self.completions)
        if not isinstance(answers, list | tuple):
            raise InvalidRowError(
                f"column {self.completions!r} is no list", f"got {type(answers).__name__}"
            )
        every = [check_completion(answer, self.completions, prompt) for answer in answers]
        different = [answer for i, answer in enumerate(every) if answer not in every[:i]]
        return [Record(prompt, tuple(different))]


def read_pairs(
    source: Source,
    format: Format | None = None,
    uncertainty: str | None = None,
    invalid: Literal["drop", "error"] = "error",
) -> list[Pair]:
    """Read what is to be compared: of each record with K answers all K (K - 1) / 2 pairs.

    Args:
        source: Where the rows come from.
        format: How a row becomes records. None: `ExplicitPrompt`, or `Candidates` for rows with a column `completions`.
            Labels that the rows may hold already (which answer was chosen, scores) are not shown.
        uncertainty: Column with a number per row, such as the standard deviation of an ensemble's margins. None: none.
        invalid: Rows that can't be used end it (error), or are left out (drop).

    Raises:
        DataError: A row can't be used, or there is no pair at all.

    Example:
        >>> from lit_rlhf.data import RowsSource
        >>> read_pairs(RowsSource([{"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}]))
        [Pair(prompt='2 + 2 =', first='4', second='5', uncertainty=None)]
    """

    def of_row(row: Row) -> Iterator[Pair]:
        listed = "completions" in row and "chosen" not in row
        read = format or (Candidates() if listed else ExplicitPrompt())
        number = None if uncertainty is None else read_number(row, uncertainty)
        for record in read(row):
            for i, j in answers_in_twos(record):
                answers = record.completions
                yield Pair(record.prompt, answers[i], answers[j], number)

    rows = source if format is None else grouped(source, format)
    found, dropped = made_of_rows(rows, of_row, invalid)
    pairs: dict[str, Pair] = {}
    for pair in found:
        pairs.setdefault(pair.key, pair)
    left_out = f" {len(dropped)} rows were left out, the first: {dropped[0]}." if dropped else ""
    if not pairs:
        raise DataError(f"{source} holds no pair of answers to compare.{left_out}")
    if dropped:
        _log.warning("%s: %d pairs.%s", source, len(pairs), left_out)
    return list(pairs.values())


def made_of_rows(
    source: Source, make: Callable[[Row], Iterable[Made]], invalid: Literal["drop", "error"]
) -> tuple[list[Made], list[str]]:
    """What is made of the rows of a source, and what is said of each that is left out.

    Raises:
        DataError: A row can't be used, and may not be left out.
    """
    made: list[Made] = []
    dropped: list[str] = []
    for number, row in enumerate(rows_of(source)):
        try:
            made += [*make(row)]
        except InvalidRowError as error:
            dropped.append(f"{source.locate(number)}: {error}")
            if invalid == "error":
                raise DataError(f"{dropped[-1]}. {WAYS_OUT}.") from error
    return made, dropped


def answers_in_twos(record: Record) -> Iterator[tuple[int, int]]:
    """The places of each two answers of a record.

    Raises:
        InvalidRowError: There aren't two answers, or two are the same.
    """
    answers = record.completions
    if len(answers) < 2 or record.steps:
        raise InvalidRowError("fewer than two answers", f"there are {len(answers)}")
    for i, j in combinations(range(len(answers)), 2):
        if answers[i] == answers[j]:
            raise InvalidRowError("identical pair", f"both answers are {shorten(answers[i], 60)}")
        yield i, j
