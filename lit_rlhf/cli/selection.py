"""What is kept of scored completions of a prompt: the best, to imitate, or the best and the worst, to compare."""

from collections.abc import Iterable, Sequence
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


@dataclass
class Kept:
    """Rows, and how many prompts gave none.

    Attributes:
        rows: What is kept.
        without: Prompts with too few completions that ended, or with equal scores where a difference is wanted.
    """

    rows: list[Row]
    without: int = 0


def keep_every(
    prompts: Iterable[tuple[Row, Sequence[Sample]]],
    unfinished: bool,
    column: str,
    columns: Sequence[str],
) -> Kept:
    """A row for each completion.

    Args:
        prompts: The data's row of each prompt, and its completions.
        unfinished: Those that were cut too.
        column: Of the completion's text.
        columns: What else of it is kept: `score`, `finished`, `kl`.
    """
    return Kept(
        [
            {**row, column: one.text, **{name: getattr(one, name) for name in columns}}
            for row, samples in prompts
            for one in samples
            if one.finished or unfinished
        ]
    )


def keep_best(prompts: Iterable[tuple[Row, Sequence[Sample]]], number: int = 1) -> Kept:
    """Demonstrations: the highest scored completions of each prompt, in the columns `completion` and `score`.

    A completion that was cut is never kept: it would teach to stop in the midst of a sentence; nor is one that couldn't
    be scored. Of equal scores the earlier counts as the better.

    Args:
        prompts: The data's row of each prompt, and its completions.
        number: How many of each prompt, 1 or more; fewer where fewer ended.

    Example:
        >>> samples = [
        ...     Sample("no", 0.1, True),
        ...     Sample("yes", 0.9, True),
        ...     Sample("yes yes ye", 2.0, False),
        ... ]
        >>> keep_best([({"prompt": "well? "}, samples)]).rows
        [{'prompt': 'well? ', 'completion': 'yes', 'score': 0.9}]
    """
    kept = Kept([])
    for row, samples in prompts:
        ranked = _ranked(samples)
        kept.without += not ranked
        kept.rows += [
            {**row, "completion": text, "score": score} for score, text in ranked[:number]
        ]
    return kept


def keep_pairs(prompts: Iterable[tuple[Row, Sequence[Sample]]]) -> Kept:
    r"""Preferences: the highest scored completion of each prompt as `chosen`, the lowest as `rejected`.

    The column `p_chosen` is $\sigma$ of the difference of the scores, what raters of that reward say on average: with
    `SoftLabelDPO` the optimum is that of the reward. As hard labels, best against worst drives log-ratios apart without
    bound. The columns `chosen_score` and `rejected_score` hold the scores. Completions that were cut aren't compared.

    Args:
        prompts: The data's row of each prompt, and its completions.
    """
    kept = Kept([])
    for row, samples in prompts:
        ranked = _ranked(samples)
        if not ranked or ranked[0][0] == ranked[-1][0]:
            kept.without += 1
            continue
        (high, best), (low, worst) = ranked[0], ranked[-1]
        difference = torch.tensor([high - low], dtype=torch.float64)
        p_chosen = float(preference_probability(difference))
        pair: Row = {"chosen": best, "rejected": worst, "p_chosen": p_chosen}
        kept.rows.append({**row, **pair, "chosen_score": high, "rejected_score": low})
    return kept


def keep_candidates(
    prompts: Iterable[tuple[Row, Sequence[Sample]]], prompt: str = "prompt"
) -> Kept:
    """Answers that nobody has compared yet: the different completions of each prompt, in the column `completions`.

    Args:
        prompts: The data's row of each prompt, and its completions.
        prompt: Column of the prompt; it is written as `prompt`, and no other column is.

    Example:
        >>> samples = [Sample(text, 0.0, True) for text in ("4", "5", "4")]
        >>> keep_candidates([({"prompt": "2 + 2 ="}, samples)]).rows
        [{'prompt': '2 + 2 =', 'completions': ['4', '5']}]
    """
    kept = Kept([])
    for row, samples in prompts:
        texts = list(dict.fromkeys(sample.text for sample in samples if sample.finished))
        if len(texts) < 2:
            kept.without += 1
        else:
            kept.rows.append({"prompt": row[prompt], "completions": texts})
    return kept


def keep_self_play(
    prompts: Iterable[tuple[Row, Sequence[Sample]]],
    prompt: str = "prompt",
    completion: str = "completion",
) -> Kept:
    """Preferences: the demonstration as `chosen`, each different completion as `rejected` (SPIN, arXiv:2401.01335).

    Args:
        prompts: The data's row of each prompt, and its completions.
        prompt: Column of the prompt; it is written as `prompt`, and no other column is.
        completion: Column of the demonstration; text, or the assistant's message.

    Example:
        >>> row = {"prompt": "2 + 2 =", "completion": "4"}
        >>> keep_self_play([(row, [Sample("5", 0.0, True), Sample("4", 0.0, True)])]).rows
        [{'prompt': '2 + 2 =', 'chosen': '4', 'rejected': '5'}]
    """
    kept = Kept([])
    for row, samples in prompts:
        shown = row[completion]
        words = shown if isinstance(shown, str) else "".join(turn["content"] for turn in shown)
        texts = dict.fromkeys(sample.text for sample in samples if sample.finished)
        others = [text for text in texts if text != words]
        kept.without += not others
        pair = {"prompt": row[prompt], "chosen": shown}
        kept.rows += [{**pair, "rejected": text} for text in others]
    return kept


def _ranked(samples: Sequence[Sample]) -> list[tuple[float, str]]:
    """Scores and texts of those that ended and were scored, the best first."""
    found = [(s.score, s.text) for s in samples if s.finished and s.score is not None]
    return sorted(found, key=lambda scored: -scored[0])
