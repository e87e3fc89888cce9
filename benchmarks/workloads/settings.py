"""What both sides of a comparison are told. Standard library alone: any environment imports it."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Settings:
    """One workload.

    Attributes:
        workload: Its name.
        model: Directory of the causal language model.
        reward_model: Directory of the sequence classifier that scores in PPO.
        teacher: Directory of the model that a student learns from in distillation.
        data: JSONL with the rows, in the order in which both sides take them.
        batch: Rows (prompts, pairs, demonstrations) a step.
        steps: Steps in all; the first is warm-up and not timed.
        num_samples: Completions of each prompt.
        new_tokens: Length limit of completions.
        epochs: Passes over each rollout in PPO.
        given: Whether a student learns on the rows' completions instead of its own.
        stop_tokens: Ids that end a completion in generation; none: all have the same length.
        rank: Of LoRA; alpha is twice that, on all linear layers.
        lr: Of AdamW, constant, without decay.
        dtype: Of the base's weights.
        threads: Cores.
        cpu: Whether steps are timed by the process's own CPU seconds, which other work on the machine takes none of.
        seed: Of adapters, heads and sampling.
    """

    workload: str
    model: str
    data: str
    batch: int
    steps: int
    reward_model: str = ""
    teacher: str = ""
    num_samples: int = 1
    new_tokens: int = 32
    epochs: int = 1
    given: bool = False
    stop_tokens: tuple[int, ...] = ()
    rank: int = 16
    lr: float = 1e-4
    dtype: str = "bfloat16"
    threads: int = 2
    cpu: bool = False
    seed: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """All rows that the steps take."""
        lines = Path(self.data).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[: self.batch * self.steps]]

    def dumps(self) -> str:
        """As the one argument of a script."""
        return json.dumps(asdict(self))

    @classmethod
    def from_command_line(cls) -> Self:
        """What a script was told."""
        told = json.loads(sys.argv[1])
        return cls(**{**told, "stop_tokens": tuple(told["stop_tokens"])})


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Layers with adapters: all linear layers of the decoder."""


def vowel_share(text: str) -> float:
    """The reward of the group methods: dense, cheap, and quickly learned."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return sum(letter in "aeiou" for letter in letters) / max(len(letters), 1)
