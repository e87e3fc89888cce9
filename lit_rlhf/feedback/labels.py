"""Preference data from a judge."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_rlhf.data import Format, Record, Source
from lit_rlhf.data.conversion import grouped
from lit_rlhf.data.recognition import readings, several_readers, some_rows, spell
from lit_rlhf.data.records import Row
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.feedback.pairs import Candidates, Pair, answers_in_twos, made_of_rows
from lit_rlhf.files import write_text
from lit_rlhf.judges import Opinion, PairwiseJudge

_AT_ONCE = 64


@dataclass(frozen=True)
class LabelledPair(Pair):
    """Two answers to one prompt, and which of them the data says is better.

    Args:
        label: How far the first is better, in [0, 1]. None: nothing is said.
    """

    label: float | None = None


@dataclass(frozen=True)
class JudgedPair:
    """Two answers, and what a judge says of them.

    Attributes:
        pair: The answers, with the label that the data had.
        opinion: The judge's.
    """

    pair: LabelledPair
    opinion: Opinion

    def row(self) -> dict[str, Any]:
        """What `PreferenceDataModule` reads: `prompt`, `chosen`, `rejected` and the soft label `p_chosen`.

        Also `position_bias`, see `Opinion.bias`; and of a judge with several criteria `criteria`, by name the
        probability that `chosen` is better.
        """
        p, pair = self.opinion.p_first, self.pair
        chosen, rejected = (pair.first, pair.second) if p >= 0.5 else (pair.second, pair.first)
        said = self.opinion.criteria.items()
        criteria = {name: q if p >= 0.5 else 1 - q for name, q in said}
        return {
            "prompt": pair.prompt,
            "chosen": chosen,
            "rejected": rejected,
            "p_chosen": max(p, 1 - p),
            "position_bias": self.opinion.bias,
        } | ({"criteria": criteria} if criteria else {})


def read_labelled_pairs(
    source: Source, format: Format | None = None, invalid: Literal["drop", "error"] = "error"
) -> tuple[list[LabelledPair], int]:
    """Pairs to judge, of each ranking all of its pairs, with the labels that they have.

    Args:
        source: Where the rows come from.
        format: How a row becomes records. None: the one that reads the first rows as pairs or rankings, or `Candidates`
            for a list of answers that nobody has judged.
        invalid: Rows that can't be used end it (error), or are left out (drop); equal answers are such.

    Returns:
        The pairs, and how many rows were left out.

    Raises:
        ConfigurationError: No format, or several, read the rows.
        DataError: A row can't be used, or there is no pair at all.
    """
    reader = format or _find(source)
    # An unjudged list of answers has no first one that is better.
    labelled = not isinstance(reader, Candidates)

    def of_row(row: Row) -> Iterator[LabelledPair]:
        for record in reader(row):
            yield from _pairs(record, labelled)

    pairs, dropped = made_of_rows(grouped(source, reader), of_row, invalid)
    if not pairs:
        raise DataError(
            f"{source} holds no pair of answers to judge; {len(dropped)} rows can't be used."
        )
    return pairs, len(dropped)


def _find(source: Source) -> Format:
    rows = some_rows(source)
    found = [one for one in readings(rows) if one.kind in ("pairs", "rankings")]
    if len(found) == 1:
        return found[0].format
    if found:
        readers = [(spell(one.format), one.kind) for one in found]
        raise ConfigurationError(several_readers(readers, rows, str(source)))
    if any("completions" in row for row in rows):
        return Candidates()
    raise ConfigurationError(
        f"No format reads pairs or rankings in the rows of {source}. Their columns: {sorted(rows[0])}. "
        "Set format, such as --format ExplicitPrompt --format.chosen COLUMN --format.rejected COLUMN."
    )


def _pairs(record: Record, labelled: bool) -> Iterator[LabelledPair]:
    answers, scores = record.completions, record.fields.get("score")
    for i, j in answers_in_twos(record):
        known: float | None = None
        if isinstance(scores, Sequence):
            known = 0.5 + 0.5 * ((scores[i] > scores[j]) - (scores[i] < scores[j]))
        elif labelled:
            known = record.p_chosen
        yield LabelledPair(record.prompt, answers[i], answers[j], label=known)


@dataclass
class Labelling:
    """What a judge said of pairs.

    Args:
        pairs: How many it was asked about.
        judged: Those with a verdict in both orders.
    """

    pairs: int = 0
    judged: list[JudgedPair] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        """Share of pairs on which judge and labels agree; the judge's ties count half, the labels' are left out."""
        said = [
            (each.pair.label > 0.5, each.opinion.p_first)
            for each in self.judged
            if each.pair.label is not None and each.pair.label != 0.5
        ]
        hits = [0.5 if p == 0.5 else float((p > 0.5) == known) for known, p in said]
        return sum(hits) / len(hits) if hits else None

    @property
    def position_bias(self) -> float:
        """Mean of `Opinion.bias`: 0 is none; needs one judged pair."""
        return sum(each.opinion.bias for each in self.judged) / len(self.judged)

    def numbers(self) -> dict[str, float | None]:
        """Pairs, those that were labelled and those tied, agreement and position bias; None where there is none."""
        return {
            "pairs": self.pairs,
            "labelled": len(self.judged),
            "tied": sum(each.opinion.p_first == 0.5 for each in self.judged),
            "agreement": self.agreement,
            "position_bias": self.position_bias if self.judged else None,
        }

    def __str__(self) -> str:
        """Some lines for people."""
        count = len(self.judged)
        opinions = [each.opinion for each in self.judged]
        tied = sum(opinion.p_first == 0.5 for opinion in opinions)
        left = self.pairs - count
        said = f"{count} of {self.pairs} pairs labelled, {tied} of them tied"
        lines = [f"{said}; {left} without a verdict left out"]
        if count:
            flipped = sum((o.forward - 0.5) * (o.backward - 0.5) > 0 for o in opinions) / count
            lines.append(
                f"position bias: what is shown first is preferred with {0.5 + self.position_bias:.1%} (50% is none); "
                f"{flipped:.1%} of the verdicts follow the place when the order is turned"
            )
        if self.agreement is not None:
            lines.append(f"agreement with the labels of the data: {self.agreement:.1%}")
        return "\n".join(lines)


def label_pairs(
    pairs: Sequence[LabelledPair],
    judge: PairwiseJudge,
    progress: Callable[[int], object] = lambda _: None,
) -> Labelling:
    """Ask a judge about pairs, each in both orders.

    Args:
        pairs: What to ask about.
        judge: Whom to ask; with a cache, a second call with the same pairs asks nothing.
        progress: Called with the number of pairs that are done, now and then.

    Raises:
        ServiceError: A question failed, and the judge's `failures` is "raise".
    """
    result = Labelling(len(pairs))
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        opinions = judge.compare([(pair.prompt, pair.first, pair.second) for pair in part])
        for pair, opinion in zip(part, opinions, strict=True):
            if opinion is not None:
                result.judged.append(JudgedPair(pair, opinion))
        progress(start + len(part))
    return result


def write_preferences(labelling: Labelling, path: Path) -> None:
    """Write the labelled pairs as JSONL, whole or not at all; see `JudgedPair.row`.

    Raises:
        DataError: There is none.
        FileError: The file can't be written.
    """
    if not labelling.judged:
        raise DataError(
            f"The judge gave no verdict on any of {labelling.pairs} pairs, so {path} is not written. Look at its "
            "template and words."
        )
    # ASCII: lone surrogates, which JSON may hold, are no UTF-8.
    text = "".join(f"{json.dumps(pair.row(), default=dict)}\n" for pair in labelling.judged)
    write_text(path, text, "The preferences")
