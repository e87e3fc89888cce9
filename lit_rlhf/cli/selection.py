"""What is kept of scored completions of a prompt: the best, to imitate, or the best and the worst, to compare."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_rlhf.functional.rankings import preference_probability

Row = dict[str, Any]

WRITTEN = {
    "best": ("completion", "score"),
    "pairs": ("chosen", "rejected", "p_chosen", "chosen_score", "rejected_score"),
}
"""What selections add to the rows."""


@dataclass(frozen=True)
class Sample:
    """A completion.

    Attributes:
        text: Without special tokens.
        score: Higher is better; None where it couldn't be scored.
        finished: Ended by itself, not cut at the length limit.
        kl: Its log-prob less that under another model, where one is asked.
    """

    text: str
    score: float | None
    finished: bool
    kl: float = 0.0


Selection = Callable[[Row, Sequence[Sample]], list[Row]]
"""From the data's row of a prompt, and its completions, to what is kept of them; nothing where they won't do."""


def keep(
    prompts: Iterable[tuple[Row, Sequence[Sample]]], select: Selection
) -> tuple[list[Row], int]:
    """What is kept of all prompts, and how many of them give nothing."""
    found = [select(row, samples) for row, samples in prompts]
    return [row for rows in found for row in rows], found.count([])


def every(
    row: Row, samples: Sequence[Sample], unfinished: bool, column: str, columns: Sequence[str]
) -> list[Row]:
    """A row for each completion.

    Args:
        row: The data's, of the prompt.
        samples: Its completions.
        unfinished: Those that were cut too.
        column: Of the completion's text.
        columns: What else of it is kept: `score`, `finished`, `kl`.
    """
    return [
        {**row, column: one.text, **{name: getattr(one, name) for name in columns}}
        for one in samples
        if one.finished or unfinished
    ]


def best(row: Row, samples: Sequence[Sample], number: int = 1) -> list[Row]:
    """Demonstrations: the highest scored completions of a prompt, in the columns `completion` and `score`.

    A completion that was cut is never kept: it would teach to stop in the midst of a sentence; nor is one that couldn't
    be scored. Of equal scores the earlier counts as the better.

    Args:
        row: The data's, of the prompt.
        samples: Its completions.
        number: How many are kept, 1 or more; fewer where fewer ended.

    Example:
        >>> samples = [
        ...     Sample("no", 0.1, True),
        ...     Sample("yes", 0.9, True),
        ...     Sample("yes yes ye", 2.0, False),
        ... ]
        >>> best({"prompt": "well? "}, samples)
        [{'prompt': 'well? ', 'completion': 'yes', 'score': 0.9}]
    """
    ranked = _ranked(samples)[:number]
    return [{**row, "completion": text, "score": score} for score, text in ranked]


def best_and_worst(row: Row, samples: Sequence[Sample]) -> list[Row]:
    r"""A preference: the highest scored completion of a prompt as `chosen`, the lowest as `rejected`.

    The column `p_chosen` is $\sigma$ of the difference of the scores, what raters of that reward say on average: with
    `SoftLabelDPO` the optimum is that of the reward. As hard labels, best against worst drives log-ratios apart without
    bound. The columns `chosen_score` and `rejected_score` hold the scores. Completions that were cut aren't compared.

    Args:
        row: The data's, of the prompt.
        samples: Its completions.
    """
    ranked = _ranked(samples)
    if not ranked or ranked[0][0] == ranked[-1][0]:
        return []
    (high, chosen), (low, rejected) = ranked[0], ranked[-1]
    difference = torch.tensor([high - low], dtype=torch.float64)
    p_chosen = float(preference_probability(difference))
    pair: Row = {"chosen": chosen, "rejected": rejected, "p_chosen": p_chosen}
    return [{**row, **pair, "chosen_score": high, "rejected_score": low}]


def candidates(row: Row, samples: Sequence[Sample], prompt: str = "prompt") -> list[Row]:
    """Answers that nobody has compared yet: the different completions of a prompt, in the column `completions`.

    Args:
        row: The data's, of the prompt.
        samples: Its completions.
        prompt: Column of the prompt; it is written as `prompt`, and no other column is.

    Example:
        >>> samples = [Sample(text, 0.0, True) for text in ("4", "5", "4")]
        >>> candidates({"prompt": "2 + 2 ="}, samples)
        [{'prompt': '2 + 2 =', 'completions': ['4', '5']}]
    """
    texts = _different(samples)
    return [{"prompt": row[prompt], "completions": texts}] if len(texts) > 1 else []


def self_play(
    row: Row, samples: Sequence[Sample], prompt: str = "prompt", completion: str = "completion"
) -> list[Row]:
    """Preferences: the demonstration as `chosen`, each different completion as `rejected` (SPIN, arXiv:2401.01335).

    Args:
        row: The data's, of the prompt.
        samples: Its completions.
        prompt: Column of the prompt; it is written as `prompt`, and no other column is.
        completion: Column of the demonstration; text, or the assistant's message.

    Example:
        >>> row = {"prompt": "2 + 2 =", "completion": "4"}
        >>> self_play(row, [Sample("5", 0.0, True), Sample("4", 0.0, True)])
        [{'prompt': '2 + 2 =', 'chosen': '4', 'rejected': '5'}]
    """
    shown = row[completion]
    words = shown if isinstance(shown, str) else "".join(turn["content"] for turn in shown)
    pair = {"prompt": row[prompt], "chosen": shown}
    return [{**pair, "rejected": text} for text in _different(samples) if text != words]


def _different(samples: Sequence[Sample]) -> list[str]:
    """The texts of those that ended, each once."""
    return list(dict.fromkeys(sample.text for sample in samples if sample.finished))


def _ranked(samples: Sequence[Sample]) -> list[tuple[float, str]]:
    """Scores and texts of those that ended and were scored, the best first."""
    found = [(s.score, s.text) for s in samples if s.finished and s.score is not None]
    return sorted(found, key=lambda scored: -scored[0])
