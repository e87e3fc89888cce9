"""Small policies, rewards and prompts for tests of the on-policy modules."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lit_rlhf.models import (
    Critic,
    LoraSpec,
    ModelSpec,
    ValueAdapter,
    ValueHead,
    ValueModel,
)
from lit_rlhf.modules import PPOPolicyModule, Updates
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.tokenizers import load_tokenizer
from lit_rlhf.types import Completions, PromptBatch, Scores

PROMPTS = [
    "how was the film? ",
    "a",
    "the hotel: ",
    "food, then",
    "x y z",
    "well well",
    "what of it ",
    "12",
]


class CountVowels(Reward):
    """Vowels in the response: deterministic, and different for different responses."""

    def score(self, completions: Completions) -> Scores:
        counts = [sum(letter in "aeiou" for letter in text) for text in completions.responses]
        return Scores(torch.tensor(counts, dtype=torch.float32, device=completions.tokens.device))


def prompt_batch(model_dir: Path, prompts: Iterable[str] = PROMPTS, start: int = 0) -> PromptBatch:
    """A batch as `PromptDataModule` makes it."""
    tokenizer = load_tokenizer(str(model_dir))
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    width = max(map(len, ids))
    return PromptBatch(
        input_ids=torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        branch_ids=torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in ids]),
        position_ids=torch.arange(width).expand(len(ids), width),
        index=torch.arange(start, start + len(ids)),
        columns={},
    )


def prompt_loader(model_dir: Path, batch_size: int = 4) -> DataLoader[Any]:
    """All prompts, `batch_size` an iteration."""
    rows = list(enumerate(PROMPTS))

    def collate(items: list[tuple[int, str]]) -> PromptBatch:
        return prompt_batch(model_dir, [text for _, text in items], start=items[0][0])

    return DataLoader(rows, batch_size=batch_size, collate_fn=collate, drop_last=True)  # type: ignore[arg-type]


ARRANGEMENTS: dict[str, tuple[dict[str, Any], Callable[[ModelSpec], Critic]]] = {
    "full-head": ({}, lambda _: ValueHead()),
    "full-model": ({}, ValueModel),
    "lora-head": ({"lora": LoraSpec(rank=4)}, lambda _: ValueHead()),
    "lora-adapter": ({"lora": LoraSpec(rank=4)}, lambda _: ValueAdapter()),
    "lora-model": ({"lora": LoraSpec(rank=4)}, lambda spec: ValueModel(ModelSpec(name=spec.name))),
    "nf4-head": ({"lora": LoraSpec(rank=4), "quantization": "nf4"}, lambda _: ValueHead()),
    "nf4-adapter": ({"lora": LoraSpec(rank=4), "quantization": "nf4"}, lambda _: ValueAdapter()),
    "int8-adapter": ({"lora": LoraSpec(rank=4), "quantization": "int8"}, lambda _: ValueAdapter()),
}
"""How policy and value can share weights: options of the spec and the critic."""


def make_ppo(model_dir: Path, arrangement: str = "lora-head", **options: Any) -> PPOPolicyModule:
    """A PPO module on the tiny model."""
    spec_options, critic = ARRANGEMENTS[arrangement]
    spec = ModelSpec(name=str(model_dir), **spec_options)
    defaults: dict[str, Any] = {
        "sampling": Sampling(max_new_tokens=6),
        "value": critic(spec),
        "updates": Updates(epochs=2, minibatches=2),
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    }
    return PPOPolicyModule(spec, CountVowels(), **(defaults | options))


def make_trainer(**options: Any) -> Trainer:
    """A quiet trainer."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**(defaults | options))


def fit(module: LightningModule, model_dir: Path, batch_size: int = 4, **options: Any) -> Trainer:
    """Train on the prompts."""
    trainer = make_trainer(**options)
    trainer.fit(module, prompt_loader(model_dir, batch_size))
    return trainer
