"""Answers that raters have compared, read by the library's own sources and formats."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal

from lit_rlhf.data import AnswerSets, Format, InvalidRowError, Record, Source
from lit_rlhf.data.conversion import Conversion, Shape, Style, grouped, rows_of
from lit_rlhf.data.recognition import read_as, some_rows, spell
from lit_rlhf.data.records import Row, read_number
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.seeding import stable_hash
from lit_rlhf.types import Text

Kind = Literal["pair", "ranking", "sets"]
_KEPT, _DIGITS = 256, 16  # hashes of a sketch, and hexadecimal digits of each
_SHAPE = Shape((2, None), fields=("margin", "p_chosen", "score", "attributes"), unit="comparisons")


@dataclass(frozen=True)
class Comparison:
    """A prompt, its answers, and what raters say of them.

    Attributes:
        prompt: Plain text or messages.
        answers: K of them, of the same kind as the prompt. Of a pair the one that more raters prefer comes first.
        values: How good each is: raters' scores; of a pair 1 and 0.
        kind: A pair; a ranking by scores; or sets, some answers good (1) and some bad (0).
        row: Number of the source's row, from 0.
        part: Which of the row's comparisons it is.
        subset: Which part of the data it belongs to, "" where they name none.
        p_chosen: Of a pair the probability that a rater prefers the first, 1/2 to 1.
        votes: How many raters that is a share of, where the data say so.
        name: The data's own name for it (column `id`), "" where there is none.
        style: What plain text is; see `Format.style`.
        template: What the chat template is given beside messages.
    """

    prompt: Text
    answers: tuple[Text, ...]
    values: tuple[float, ...]
    kind: Kind = "pair"
    row: int = 0
    part: int = 0
    subset: str = ""
    p_chosen: float = 1.0
    votes: int | None = None
    name: str = ""
    style: Style = "text"
    template: Mapping[str, Any] | None = None

    def record(self) -> Record:
        """As the library's encoder takes it."""
        return Record(self.prompt, self.answers, template=self.template)

    @property
    def chance(self) -> float:
        """What scores drawn at random get right of it."""
        return sum(self.values) / len(self.values) if self.kind == "sets" else 0.5

    def pairs(self) -> list[tuple[int, int]]:
        """The better and the worse answer of each pair whose values differ; of a pair always the first and second."""
        if self.kind == "pair":
            return [(0, 1)]
        places = permutations(range(len(self.values)), 2)
        return [(i, j) for i, j in places if self.values[i] > self.values[j]]


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of a source.

    Attributes:
        source: What messages call it.
        format: How its rows were read.
        items: The comparisons.
        soft: Whether the rows say how sure raters are (`p_chosen`).
        left_out: Rows that can't be used, by reason.
    """

    source: str
    format: str
    items: Sequence[Comparison]
    soft: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_comparisons(
    source: Source,
    format: Format | None = None,
    subset: str = "subset",
    invalid: Literal["drop", "error"] = "drop",
) -> Comparisons:
    """Read pairs, rankings, or lists of good and bad answers.

    Beside what the format reads: `subset`, `p_chosen` with `votes` (how many raters), and `id`.

    Args:
        source: Where the rows come from.
        format: How a row becomes answers. None: the format that reads the first rows.
        subset: Column that says which part of the data a row belongs to; read where rows have it.
        invalid: Rows that can't be used are left out and counted, or end it.

    Raises:
        ConfigurationError: No format reads the rows as answers to compare, or several do.
        DataError: A row can't be used and `invalid` is "error"; or nothing is left.

    Example:
        >>> from lit_rlhf.data import RowsSource
        >>> rows = [{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "subset": "sums"}]
        >>> read_comparisons(RowsSource(rows)).items[0].subset
        'sums'
    """
    if format is None:
        reading = read_as(some_rows(source), str(source), None, None)
        if reading.kind not in ("pairs", "rankings"):
            raise ConfigurationError(
                f"The rows of {source} are {reading.kind}, read by {spell(reading.format)}, and rewards are evaluated "
                "on pairs, rankings, or lists of good and bad answers. Set `format` if they are that."
            )
        format = reading.format
    rows = grouped(source, format)
    convert = Conversion(rows, format, _SHAPE)
    items: list[Comparison] = []
    counts: Counter[str] = Counter()
    first, soft = "", False
    for number, row in enumerate(rows_of(rows)):
        for part, record in enumerate(convert(number, row)):
            try:
                if isinstance(record, InvalidRowError):
                    raise record
                items.append(_comparison(record, row, format, number, part, subset))
                soft = soft or "p_chosen" in record.fields
            except InvalidRowError as error:
                where = f"{rows.locate(number)}: {error}"
                if invalid == "error":
                    raise DataError(
                        f"{where}. Mend it, or leave such rows out: --invalid drop."
                    ) from error
                counts[error.reason] += 1
                first = first or f" The first: {where}."
    if not items:
        raise DataError(f"{source} holds no answers to compare.{first}")
    return Comparisons(str(source), spell(format), items, soft, counts)


def _comparison(
    record: Record, row: Row, reader: Format, number: int, part: int, subset: str
) -> Comparison:
    answers, values = record.completions, record.fields.get("score")
    p, votes = 1.0, None
    kind: Kind = "sets" if isinstance(reader.innermost, AnswerSets) else "ranking"
    if values is None:
        kind, values = "pair", (1.0, 0.0)
        p = record.p_chosen
        if answers[0] == answers[1]:
            raise InvalidRowError("identical pair", "both answers are the same")
        if p < 0.5:
            p, answers = 1 - p, answers[::-1]
        if "p_chosen" in record.fields and row.get("votes") is not None:
            votes = int(read_number(row, "votes", 1))
    assert isinstance(values, tuple)
    if len(set(values)) == 1:
        raise InvalidRowError("ranking of ties", "all scores are equal, so no answer is preferred")
    names = (row.get(name) for name in (subset, "id"))
    part_of, own = ("" if name is None else str(name) for name in names)
    return Comparison(
        prompt=record.prompt,
        answers=answers,
        values=values,
        kind=kind,
        row=number,
        part=part,
        subset=part_of,
        p_chosen=p,
        votes=votes,
        name=own,
        style=reader.style,
        template=record.template,
    )


def text_of(text: Text) -> str:
    """What stands in a text, without roles."""
    if isinstance(text, str):
        return text
    return "\n".join(str(turn.get("content") or "") for turn in text)


def sketch_pairs(items: Sequence[Comparison]) -> str:
    """The 256 smallest hashes of pairs of answers with their prompts, by which overlap is told, in few bytes.

    Args:
        items: The comparisons; the order of answers doesn't count.
    """
    return "".join(f"{each:0{_DIGITS}x}" for each in sorted(set(_hashes(items)))[:_KEPT])


def share_sketched(sketch: str, items: Sequence[Comparison]) -> float:
    """Which share of the pairs of comparisons stands in a sketch: exact up to 256 pairs, beyond that an estimate.

    Args:
        sketch: Of other comparisons.
        items: The comparisons.
    """
    known = {int(sketch[at : at + _DIGITS], 16) for at in range(0, len(sketch), _DIGITS)}
    whole, largest = len(known) < _KEPT, max(known, default=0)
    near = [each for each in _hashes(items) if whole or each <= largest]
    return sum(each in known for each in near) / len(near) if near else 0.0


def _hashes(items: Sequence[Comparison]) -> list[int]:
    return [
        stable_hash(each.record().prompt_key(), *sorted(text_of(each.answers[k]) for k in pair))
        for each in items
        for pair in each.pairs()
    ]
