"""Rows as the model will see them: text with its special tokens, and what all prompts have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.preparation import Report
from lit_rlhf.data.records import ratings_by_answer
from lit_rlhf.data.rows import TokenizedRow, TokenizedRows
from lit_rlhf.prompt_form import PromptForm

_HEAD, _TAIL = 300, 200
_LOOKED_AT = 256


def part_names(fields: Mapping[str, Any], count: int) -> list[str]:
    """What to call the prompt and its answers, by what is said of them.

    Args:
        fields: Of the record.
        count: How many answers there are.
    """
    names = ["answer"] * count
    said: list[list[str]] = [[] for _ in names]
    if "step_label" in fields:
        said = [[f"{label:g}"] for label in fields["step_label"]]
        names = ["step"] * len(said)
    elif "score" in fields and count > 1:
        said = [[f"{score:g}"] for score in fields["score"]]
    elif count == 2:
        names = ["chosen", "rejected"]
        said[0] = [f"{name} {fields[name]:g}" for name in ("margin", "p_chosen") if name in fields]
    else:
        said = [
            [f"{name} {fields[name]}" for name in ("label", "score") if name in fields]
            for _ in names
        ]
    for place, ratings in enumerate(ratings_by_answer(fields, len(said))):
        if ratings:
            said[place].append("rated " + ", ".join(f"{rating:g}" for rating in ratings))
    told = [f" ({', '.join(each)})" if each else "" for each in said]
    return ["prompt", *(f"{name}{tail}" for name, tail in zip(names, told, strict=True))]


def say_format(
    what: str, row: TokenizedRow, tokenizer: PreTrainedTokenizerBase, unread: Sequence[str]
) -> None:
    """Say, in one process, which format was found, what it leaves unread, and show a row.

    Args:
        what: Which format reads which source.
        row: The row.
        tokenizer: Decodes it.
        unread: Columns that the format doesn't look at.
    """
    lines = [f"{what}. Its first row as the model will see it:"]
    parts = [row["prompt_ids"], *row["completion_ids"]]
    names = part_names(row["fields"], len(parts) - 1)
    for name, ids in zip(names, parts, strict=False):  # steps that were too long are cut off
        lines.append(f"  {name}: {_line(str(tokenizer.decode(ids)))}")
    if unread:
        lines.append(f"  columns that are not read: {', '.join(unread)}")
    if {"score_chosen", "score_rejected"} <= {*unread}:
        lines.append(
            "  the difference of the scores becomes the margin with the format's options "
            "chosen_score: score_chosen, rejected_score: score_rejected"
        )
    rank_zero_info("\n".join(lines))


def form_of_prompts(
    rows: TokenizedRows, report: Report, tokenizer: PreTrainedTokenizerBase
) -> PromptForm | None:
    """How the prompts of rows are written; None where they have none.

    Args:
        rows: Some of them, spread evenly, are looked at.
        report: Of their preparation.
        tokenizer: Decodes them; its chat template renders conversations.
    """
    if report.chats:
        if report.chats < report.records:
            return PromptForm("mixed", "", None)
        return PromptForm.of_chats(tokenizer, report.systems)
    chosen = [rows[at] for at in range(0, len(rows), max(len(rows) // _LOOKED_AT, 1))]
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    prompts = [
        ids[1:] if ids[0] in starts else ids for ids in (row["prompt_ids"] for row in chosen)
    ]
    return (
        PromptForm.of_texts([str(tokenizer.decode(ids)) for ids in prompts])
        if any(prompts)
        else None
    )


def say_difference(name: str, found: str, train: str) -> None:
    """Warn, in one process, where a source is read by another format than the training rows."""
    if found != train:
        rank_zero_warn(
            f"The {name} rows are read as {found}, the training rows as {train}. Set `format` if that is not meant."
        )


def _line(text: str) -> str:
    text = text.replace("\n", "\\n")
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]} [... {len(text) - _HEAD - _TAIL} characters ...] {text[-_TAIL:]}"
