"""Rows tokenized one after the other, each text by a call of its own."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.records import Record


def ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    """Tokens of one text; a BOS that it spells out itself is not doubled."""
    found: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    doubled = special and found[:2] == [tokenizer.bos_token_id] * 2
    return found[1:] if doubled else found


def going_on(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text that follows a line break, where they are those of the break and further ones."""
    start, whole = ids(tokenizer, "\n", special=False), ids(tokenizer, "\n" + text, special=False)
    return (
        whole[len(start) :] if whole[: len(start)] == start else ids(tokenizer, text, special=False)
    )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, record: Record
) -> tuple[list[int], list[list[int]]]:
    """Prompt and completions of a record that can be used, of a tokenizer that adds no EOS; no limits, no repair."""
    prompt, wholes, special = rendered(tokenizer, record)
    head = ids(tokenizer, prompt, special=special)
    tails = []
    for place, whole in enumerate(wholes):
        joint = ids(tokenizer, whole, special=special)
        tail = (
            joint[len(head) :]
            if joint[: len(head)] == head
            else going_on(tokenizer, whole[len(prompt) :])
        )
        if record.steps:
            tail = going_on(tokenizer, whole[len(prompt) :])
        ends = not record.steps or place == len(wholes) - 1
        tails.append(
            [*tail, tokenizer.eos_token_id] if ends and tail[-1] != tokenizer.eos_token_id else tail
        )
    return head or [tokenizer.bos_token_id], tails


def rendered(tokenizer: PreTrainedTokenizerBase, record: Record) -> tuple[str, list[str], bool]:
    """Texts of the prompt and of prompt and completion, and whether the tokenizer's BOS goes in front."""
    if isinstance(record.prompt, str):
        return (
            record.prompt,
            [record.prompt + str(completion) for completion in record.completions],
            True,
        )
    prompt = tokenizer.apply_chat_template(
        list(record.prompt), tokenize=False, add_generation_prompt=True
    )
    wholes: Sequence[Any] = [
        tokenizer.apply_chat_template([*record.prompt, *completion], tokenize=False)  # type: ignore[misc]
        for completion in record.completions
    ]
    return str(prompt), [str(whole) for whole in wholes], False
