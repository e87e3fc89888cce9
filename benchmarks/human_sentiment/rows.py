"""Data-set rows built from rated sentences: demonstrations, prompts and preference pairs.

Everything shares one text form, `PREFIX` and then the sentence, so the reward model sees in training what it will see
of the policy: the branches of a pair are whole sentences after `PREFIX`, the policy is given `PREFIX` and a sentence's
first words. Completions begin with a space, so cutting at a word's end doesn't change the tokens of a byte-level BPE.
"""

import random
from collections import Counter
from collections.abc import Sequence

import torch

from benchmarks.human_sentiment.corpus import Sentence

PREFIX = "Film review:"

Row = dict[str, str | float | list[str] | list[float] | list[int]]


def p_preferred(first: Sequence[int], second: Sequence[int]) -> float:
    """Probability that a random rater of `first` rates higher than a random rater of `second`; ties count half.

    Example:
        >>> p_preferred([3, 1], [1, 0])
        0.875
    """
    one, two = Counter(first), Counter(second)
    wins = sum(n * m * ((a > b) + 0.5 * (a == b)) for a, n in one.items() for b, m in two.items())
    return wins / (len(first) * len(second))


def pair_row(first: Sentence, second: Sentence) -> Row:
    """A preference pair: the sentence with the higher mean is `chosen`.

    `p_chosen` is the share of rater pairs that prefer it (it can be below one half when a few raters pull the mean),
    `margin` the difference of means, and `chosen_ratings` and `rejected_ratings` what each rater gave.
    """
    chosen, rejected = (first, second) if first.mean >= second.mean else (second, first)
    return {
        "prompt": PREFIX,
        "chosen": f" {chosen.text}",
        "rejected": f" {rejected.text}",
        "p_chosen": p_preferred(chosen.ratings, rejected.ratings),
        "margin": chosen.mean - rejected.mean,
        "chosen_ratings": list(chosen.ratings),
        "rejected_ratings": list(rejected.ratings),
    }


def pair_rows(sentences: Sequence[Sentence], rounds: int, seed: int) -> list[Row]:
    """Pair sentences at random so that each occurs in `rounds` pairs (but for an odd one out per round).

    Pairs of equal means are kept: with a soft label near one half they say that the scores should be near too.
    """
    rng = random.Random(seed)
    rows: list[Row] = []
    for _ in range(rounds):
        order = rng.sample(range(len(sentences)), len(sentences))
        rows += [
            pair_row(sentences[i], sentences[j])
            for i, j in zip(order[::2], order[1::2], strict=False)
        ]
    return rows


def list_rows(sentences: Sequence[Sentence], size: int, rounds: int, seed: int) -> list[Row]:
    """Lists of sentences drawn at random, with their mean ratings: `completions` and `scores`, `size` of each.

    Each sentence occurs in `rounds` lists, but for less than `size` of them per round.
    """
    rng = random.Random(seed)
    rows: list[Row] = []
    for _ in range(rounds):
        order = rng.sample(sentences, len(sentences))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            completions = [f" {sentence.text}" for sentence in chosen]
            rows.append(
                {"prompt": PREFIX, "completions": completions, "scores": [s.mean for s in chosen]}
            )
    return rows


def rater_scatter(sentences: Sequence[Sentence], seed: int) -> float:
    """T for which sigmoid(difference of means / T) fits the shares of raters best: least squares, random pairs."""
    rows = pair_rows(sentences, 1, seed)
    margins = torch.tensor([row["margin"] for row in rows], dtype=torch.float64)
    shares = torch.tensor([row["p_chosen"] for row in rows], dtype=torch.float64)
    candidates = torch.linspace(0.2, 3.0, 281, dtype=torch.float64)
    errors = ((margins / candidates[:, None]).sigmoid() - shares).square().mean(-1)
    return float(candidates[errors.argmin()])


def cut_after_words(text: str, words: int) -> tuple[str, str]:
    """Cut a text after its first words; both parts together are the text with single spaces.

    Example:
        >>> cut_after_words("a film of rare charm", 2)
        ('a film', ' of rare charm')
    """
    parts = text.split()
    rest = " ".join(parts[words:])
    return " ".join(parts[:words]), f" {rest}" if rest else ""


def prompt_rows(
    sentences: Sequence[Sentence], words: tuple[int, int], min_rest: int, seed: int
) -> list[Row]:
    """First words of sentences as prompts, with the rest beside them.

    Args:
        sentences: Those with fewer than `words + min_rest` words are left out.
        words: Smallest and largest number of first words; drawn per sentence.
        min_rest: Words that must be left to write.
        seed: Of the draws.

    Returns:
        Rows with `prompt`, `completion` (what the sentence says) and `mean` (its rating). The same rows serve as
        demonstrations (prompt and completion) and as prompts.
    """
    rng = random.Random(seed)
    rows: list[Row] = []
    for sentence in sentences:
        number = rng.randint(*words)
        if len(sentence.text.split()) < number + min_rest:
            continue
        first, rest = cut_after_words(sentence.text, number)
        rows.append({"prompt": f"{PREFIX} {first}", "completion": rest, "mean": sentence.mean})
    return rows
