"""The rows of all workloads, cut from human film reviews with the model's tokenizer."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.workloads.generation import PROMPT_TOKENS as GENERATION_TOKENS
from benchmarks.workloads.shared import head_weight
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.export import export_reward
from lit_rlhf.testing import write_jsonl

PROMPT_TOKENS = (112, 128)
COMPLETION_TOKENS = (18, 30)
SHORT_PROMPT_WORDS = 5


def write_rows(reviews: Path, model: Path, target: Path, count: int = 256) -> None:
    """Write `pairs.jsonl` (prompt, chosen, rejected, completion), `short.jsonl` (prompt) and `ids.jsonl` (prompt_ids).

    Args:
        reviews: `lists_train.jsonl` of benchmarks/human_sentiment.
        model: Directory of the model.
        target: Directory to write to.
        count: Rows of each.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = reviews.read_text(encoding="utf-8").splitlines()
    texts = sorted({text for row in map(json.loads, lines) for text in row["completions"]})
    random.Random(0).shuffle(texts)
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    sized = list(zip(texts, lengths, strict=True))
    least, most = COMPLETION_TOKENS
    completions = [text for text, n in sized if least <= n < most][: 2 * count]
    taken = set(completions)  # no prompt may hold an answer
    others = iter([(text, n) for text, n in sized if text not in taken])
    pairs, short = [], []
    for chosen, rejected in zip(completions[::2], completions[1::2], strict=True):
        row = {"prompt": _prompt(others), "chosen": chosen, "rejected": rejected}
        pairs.append({**row, "completion": chosen})
        words = " ".join(chosen.split(" ")[: SHORT_PROMPT_WORDS + 1])
        short.append({"prompt": f"Film review:{words}"})
    prompts = tokenizer([row["prompt"] for row in pairs], add_special_tokens=False)["input_ids"]
    ids = [{"prompt_ids": prompt[:GENERATION_TOKENS]} for prompt in prompts]
    target.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pairs", pairs), ("short", short), ("ids", ids)):
        write_jsonl(target / f"{name}.jsonl", rows)


def write_reward_model(model: Path, target: Path) -> None:
    """A sequence classifier of the model with a head drawn from a seed and the model's own tokenizer.

    Its config's pad token is one that ends no text, since transformers reads scores at the last token that isn't the
    pad token.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, dtype=torch.bfloat16
    )
    classifier.config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    classifier.score.weight.data.copy_(head_weight(classifier.config.hidden_size, 0))
    classifier.save_pretrained(target)
    tokenizer.save_pretrained(target)


def write_reward_adapter(base: ModelSpec, target: Path) -> None:
    """The same reward model as a fresh adapter (B = 0) on the policy's base: the scores are equal."""
    backbone = Backbone.load(base, lm_head=False)
    backbone.add_adapter("reward")
    backbone.add_head("reward")
    head = backbone.heads["reward"].get_parameter("weight")
    head.data.copy_(head_weight(head.numel(), 0).view_as(head))
    export_reward(backbone, target, merge=False)


def write_teacher(model: Path, target: Path) -> None:
    """The model with a tenth of noise on each matrix of its decoder: another distribution of the same vocabulary."""
    teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    random = torch.Generator().manual_seed(0)
    for name, weight in teacher.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            weight.data.mul_(1 + 0.1 * torch.randn(weight.shape, generator=random))
    teacher.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)


def _prompt(texts: Iterator[tuple[str, int]]) -> str:
    prompt, length = "Film reviews:", 4
    for text, tokens in texts:
        if length + tokens <= PROMPT_TOKENS[1]:
            prompt, length = prompt + text, length + tokens
        if length >= PROMPT_TOKENS[0]:
            return prompt
    raise ValueError("There are too few reviews for so many prompts.")
