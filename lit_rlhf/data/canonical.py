"""Records as rows with the canonical columns of their kind, which are read again without an option."""

from typing import Any

from lit_rlhf.data.conversion import template_options
from lit_rlhf.data.formats import Format
from lit_rlhf.data.recognition import kind_of
from lit_rlhf.data.records import Record, Row, RowGroup, ratings_by_answer
from lit_rlhf.data.wrappers import Wrapper

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
        row |= {"completions": answers, "scores": list(fields.pop("score"))}
    elif kind == "steps":
        while isinstance(reader, Wrapper):
            reader = reader.format
        separator = str(getattr(reader, "separator", ""))
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
