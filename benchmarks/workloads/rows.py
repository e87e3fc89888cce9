"""The rows of all workloads, cut from human film reviews with the model's tokenizer."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.workloads.shared import head_weight

PROMPT_TOKENS = (112, 128)
COMPLETION_TOKENS = (18, 30)
SHORT_PROMPT_WORDS = 5


def write_rows(reviews: Path, model: Path, target: Path, count: int = 256, seed: int = 0) -> None:
    """Write `pairs.jsonl` (prompt, chosen, rejected, completion) and `short.jsonl` (prompt).

    Args:
        reviews: `pairs_train.jsonl` of benchmarks/human_sentiment.
        model: Directory of the model.
        target: Directory to write to.
        count: Rows of each.
        seed: Of the drawing.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = reviews.read_text(encoding="utf-8").splitlines()
    texts = sorted({row[side] for row in map(json.loads, lines) for side in ("chosen", "rejected")})
    random.Random(seed).shuffle(texts)
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    endless = iter(list(zip(texts, lengths, strict=True)))
    fitting = [text for text, n in zip(texts, lengths, strict=True) if COMPLETION_TOKENS[0] <= n < COMPLETION_TOKENS[1]]
    pairs, short = [], []
    for i in range(count):
        chosen, rejected = fitting[(2 * i) % len(fitting)], fitting[(2 * i + 1) % len(fitting)]
        pairs.append({"prompt": _prompt(endless), "chosen": chosen, "rejected": rejected, "completion": chosen})
        short.append({"prompt": "Film review:" + " ".join(chosen.split(" ")[: SHORT_PROMPT_WORDS + 1])})
    target.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pairs", pairs), ("short", short)):
        _write(target / f"{name}.jsonl", rows)


def write_reward_model(model: Path, target: Path, seed: int = 0) -> None:
    """A sequence classifier of the model with a head drawn from the seed, and a pad token that ends no text."""
    if (target / "config.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = "<|endoftext|>"
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.bfloat16)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier.score.weight.data.copy_(head_weight(classifier.config.hidden_size, seed))
    classifier.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _prompt(texts: Iterator[tuple[str, int]]) -> str:
    prompt, length = "Film reviews:", 4
    for text, tokens in texts:
        if length + tokens <= PROMPT_TOKENS[1]:
            prompt, length = prompt + text, length + tokens
        if length >= PROMPT_TOKENS[0]:
            return prompt
    raise ValueError("There are too few reviews for so many prompts.")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
