"""Records as rows with the canonical columns of their kind, which are read again without an option."""

from collections.abc import Mapping
from typing import Any

from lit_rlhf.data.formats import Format
from lit_rlhf.data.recognition import kind_of
from lit_rlhf.data.records import Record
from lit_rlhf.data.wrappers import Wrapper


def canonical_row(record: Record, reader: Format, template: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row.

    Args:
        record: The record.
        reader: The format that made it: its `separator` is taken off steps, since reading them puts it on again.
        template: What the row gives the chat template: `tools`, and under `chat_template_kwargs` the rest.

    Example:
        >>> from lit_rlhf.data import ExplicitPrompt
        >>> reader = ExplicitPrompt(chosen="good", rejected="bad")
        >>> record = reader({"prompt": "2 + 2 =", "good": " 4", "bad": " 5"})[0]
        >>> canonical_row(record, reader, {})
        {'prompt': '2 + 2 =', 'chosen': ' 4', 'rejected': ' 5'}
    """
    kind, answers, fields = kind_of(record), list(record.completions), dict(record.fields)
    row: dict[str, Any] = {"prompt": record.prompt}
    if kind == "pairs":
        row |= {"chosen": answers[0], "rejected": answers[1], **fields}
    elif kind == "rankings":
        row |= {"completions": answers, "scores": list(_tuple(fields.pop("score")))}
    elif kind == "steps":
        while isinstance(reader, Wrapper):
            reader = reader.format
        separator = str(getattr(reader, "separator", ""))
        steps = [str(step).removesuffix(separator) for step in answers[:-1]]
        row |= {"completions": [*steps, answers[-1]], "labels": list(_tuple(fields["step_label"]))}
    elif kind == "text":
        row = {"text": answers[0]}
    elif answers:
        row |= {"completion": answers[0], **fields}
    row |= {name: value for name, value in record.columns.items() if name not in row}
    options = {**(record.template or template)}
    if tools := options.pop("tools", None):
        row["tools"] = tools
    return {**row, "chat_template_kwargs": options} if options else row


def _tuple(value: Any) -> tuple[float, ...]:
    assert isinstance(value, tuple)
    return value
