"""Records as rows with the canonical columns of their kind, which are read again without an option."""

from collections.abc import Sequence
from typing import Any

from lit_rlhf.data.conversion import template_options
from lit_rlhf.data.formats import AnswerSets, Format
from lit_rlhf.data.recognition import kind_of
from lit_rlhf.data.records import Record, Row, RowGroup, ratings_by_answer
from lit_rlhf.types import Text

_EVALUATED = ("id", "votes")
"""What evaluations read of a row of answers beside its record."""


def canonical_row(record: Record, reader: Format, given: Row) -> dict[str, Any]:
    """A record as a row.

    Args:
        record: The record.
        reader: The format that made it: its `separator` is taken off steps, since reading them puts it on again.
        given: The row that it was made of, for what it gives the chat template and evaluations.

    Example:
        >>> from lit_rlhf.data import ExplicitPrompt
        >>> reader = ExplicitPrompt(chosen="good", rejected="bad")
        >>> given = {"prompt": "2 + 2 =", "good": " 4", "bad": " 5"}
        >>> canonical_row(reader(given)[0], reader, given)
        {'prompt': '2 + 2 =', 'chosen': ' 4', 'rejected': ' 5'}
    """
    kind, answers = kind_of(record), list(record.completions)
    fields: dict[str, Any] = dict(record.fields)
    if "attributes" in fields:
        ratings = [list(each) for each in ratings_by_answer(fields, len(answers))]
        fields["attributes"] = ratings if len(ratings) > 1 else ratings[0]
    row: dict[str, Any] = {"prompt": record.prompt}
    if kind == "pairs":
        row |= {"chosen": answers[0], "rejected": answers[1], **fields}
    elif kind == "rankings":
        scores = list(fields.pop("score"))
        sets = isinstance(reader.innermost, AnswerSets)  # of which evaluations ask other things
        row |= _sets(answers, scores) if sets else {"completions": answers, "scores": scores}
    elif kind == "steps":
        separator = str(getattr(reader.innermost, "separator", ""))
        steps = [str(step).removesuffix(separator) for step in answers[:-1]]
        row |= {"completions": [*steps, answers[-1]], "labels": list(fields["step_label"])}
    elif kind == "text":
        row = {"text": answers[0]}
    elif answers:
        row |= {"completion": answers[0], **fields}
    row |= {name: value for name, value in record.columns.items() if name not in row}
    if kind in ("pairs", "rankings") and not isinstance(given, RowGroup):
        kept = {name: given[name] for name in _EVALUATED if given.get(name) is not None}
        row = {**kept, **row}
    options = {**(record.template or template_options(given))}
    if tools := options.pop("tools", None):
        row["tools"] = tools
    return {**row, "chat_template_kwargs": options} if options else row


def _sets(answers: Sequence[Text], scores: Sequence[float]) -> dict[str, list[str]]:
    """Good and bad answers of `AnswerSets`, whose texts may have become the assistant's turns."""
    found: dict[str, list[str]] = {"chosen": [], "rejected": []}
    for answer, score in zip(answers, scores, strict=True):
        text = answer if isinstance(answer, str) else str(answer[-1]["content"])
        found["chosen" if score else "rejected"].append(text)
    return found
