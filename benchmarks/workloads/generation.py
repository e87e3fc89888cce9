"""What the generation scripts share: prompts of token ids, the clock, and the check that all decode the same model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads.settings import Settings
from benchmarks.workloads.shared import Clock

Ids = list[list[int]]
Generate = Callable[[Ids, int, bool], Ids]
"""(prompts, step, greedy) to the ids of the completions, the one that ended them included."""

PROMPT_TOKENS = 32
_GREEDY_PROMPTS = 16
GREEDY_TOKENS = 16


def run(settings: Settings, generate: Generate) -> dict[str, Any]:
    """What to report of sampling `steps` batches of prompts, the first untimed, and of completing a few greedily."""
    prompts = read_prompts(settings.data, settings.batch * settings.steps)
    clock, lengths = Clock(), []
    for step in range(settings.steps):
        batch = prompts[step * settings.batch : (step + 1) * settings.batch]
        completions = generate(batch, step, False)
        clock.tick()
        if step:
            lengths.append([len(completion) for completion in completions])
    return {
        "seconds": clock.seconds,
        "samples": settings.batch,
        "tokens": [sum(row) for row in lengths],
        "lengths": lengths,
        "greedy": generate(prompts[:_GREEDY_PROMPTS], 0, True),
    }


def read_prompts(data: str, count: int) -> Ids:
    """The first rows of `ids.jsonl`."""
    lines = Path(data).read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["prompt_ids"] for line in lines]


def cut(completion: Sequence[int], stops: Sequence[int]) -> list[int]:
    """A completion without what stands behind its first stop token."""
    for position, token in enumerate(completion):
        if token in stops:
            return list(completion[: position + 1])
    return list(completion)
