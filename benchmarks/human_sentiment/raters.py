"""Reward models beside the people that they learned from: accuracy, calibration, and how far raters agree themselves.

    python -m benchmarks.human_sentiment.raters --rewards reward/export

Each pair of `<root>/data/pairs_<name>.jsonl` has all ratings of both sentences. What is right is the sentence with the
higher mean; raters are held against the means of the others, so that none judges with a vote of its own. Several reward
models are also taken together, by the mean of their scores. Writes `<root>/raters.json`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, pvariance, variance
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from benchmarks.human_sentiment.measures import reward_margins
from lit_rlhf.evaluation.scorers import short_names
from lit_rlhf.files import read_lines
from lit_rlhf.metrics import (
    CalibrationError,
    Estimate,
    agreement,
    best_temperature,
    mcnemar_test,
    wilson_mean,
)
from lit_rlhf.seeding import generator

Ratings = Sequence[int]
THRESHOLDS = (0.0, 0.5, 1.0, 2.0)
_DRAWS = 1000


@dataclass(frozen=True)
class RatedPair:
    """Two sentences and what people gave them; the first has the higher mean.

    Attributes:
        texts: Of both, without the prefix.
        first: Ratings of the first.
        second: Ratings of the second.
        p_first: Share of rater pairs that prefer the first.
    """

    texts: tuple[str, str]
    first: Ratings
    second: Ratings
    p_first: float

    @property
    def gap(self) -> float:
        """Difference of the mean ratings, 0 or more."""
        return fmean(self.first) - fmean(self.second)


def read_pairs(root: Path, name: str, most: int | None = None) -> list[RatedPair]:
    """The pairs, or the first of them, of one of the files that `prepare.py` writes."""
    return [
        RatedPair(
            (row["chosen"].strip(), row["rejected"].strip()),
            row["chosen_ratings"],
            row["rejected_ratings"],
            row["p_chosen"],
        )
        for row in read_lines(root / "data" / f"{name}.jsonl")[:most]
    ]


def credit(margins: Tensor, truth: Tensor) -> Tensor:
    """1 where two differences have the same sign, 0 where not, and one half where the first is 0.

    Example:
        >>> credit(torch.tensor([2.0, 0.0, -1.0]), torch.ones(3)).tolist()
        [1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * margins.sign() * truth.sign()


def one_rater(first: Ratings, second: Ratings) -> float:
    """How often one rater of each sentence is right by the means of the others, over all choices of the two.

    Example:
        >>> one_rater([3, 1, 2], [0, 0, 2])
        0.8333333333333334
    """
    a, b = (torch.tensor(ratings, dtype=torch.float64) for ratings in (first, second))
    others = [(each.sum() - each) / (len(each) - 1) for each in (a, b)]
    return float(credit(a[:, None] - b, others[0][:, None] - others[1]).mean())


def half_of_raters(
    first: Ratings, second: Ratings, draw: torch.Generator, draws: int = 50
) -> float:
    """How often the mean of one half of the raters, drawn at random, is right by the mean of the other half."""
    sums = []
    for ratings in (first, second):
        values = torch.tensor(ratings, dtype=torch.float64)
        order = values[torch.rand(draws, len(values), generator=draw).argsort(-1)]
        sums.append([half.mean(-1) for half in order.tensor_split(2, -1)])
    (a, other_a), (b, other_b) = sums
    return float(credit(a - b, other_a - other_b).mean())


def known_opinions(pairs: Sequence[RatedPair]) -> list[float]:
    """How probably the first sentence of each pair is the better one to all people there are, not only to those asked.

    That is what a scorer would get right that knows the mean opinion of everybody. A sentence's mean is taken to be
    normal around that opinion, and opinions around their own mean (empirical Bayes).
    """
    every = [ratings for pair in pairs for ratings in (pair.first, pair.second)]
    means = [fmean(ratings) for ratings in every]
    noise = fmean(variance(ratings) / len(ratings) for ratings in every)
    middle, spread = fmean(means), max(pvariance(means) - noise, 1e-9)

    def opinion(ratings: Ratings) -> NormalDist:
        error = max(variance(ratings) / len(ratings), 1e-9)
        weight = spread / (spread + error)
        return NormalDist(middle + weight * (fmean(ratings) - middle), (weight * error) ** 0.5)

    return [
        1 - (opinion(pair.first) - opinion(pair.second)).cdf(0.0) if pair.gap else 0.5
        for pair in pairs
    ]


def calibration_error(margins: Tensor, p_first: Tensor) -> float:
    """Of the sigmoid of margins as the chance that a rater prefers the first."""
    metric = CalibrationError()
    metric.update(margins, torch.zeros_like(margins), p_first)
    return float(metric.compute())


def calibration(margins: Tensor, p_first: Tensor, seed: int) -> Estimate:
    """The calibration error, with the 2.5 and 97.5 percentiles of bootstrap draws of pairs."""
    count, draw = len(margins), generator(seed, "calibration")
    places = (torch.randint(count, (count,), generator=draw) for _ in range(_DRAWS))
    drawn = [calibration_error(margins[each], p_first[each]) for each in places]
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(calibration_error(margins, p_first), low, high)


def by_gap(worth: Tensor, gaps: Tensor) -> dict[str, Estimate]:
    """Mean of what each pair is worth, among pairs whose means differ by at least a threshold; ties are left out."""
    return {f"{each:g}": wilson_mean(worth[(gaps >= each) & (gaps > 0)]) for each in THRESHOLDS}


def of_raters(pairs: Sequence[RatedPair], seed: int) -> dict[str, Tensor]:
    """What each pair is worth to people, (n,) each."""
    draw = generator(seed, "halves")
    worth = {
        "one rater": [one_rater(pair.first, pair.second) for pair in pairs],
        "half of the raters": [half_of_raters(pair.first, pair.second, draw) for pair in pairs],
        "whoever knows everybody's mean": known_opinions(pairs),
    }
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in worth.items()}


def rules(pairs: Sequence[RatedPair]) -> Tensor:
    """Differences of vaderSentiment's compound scores, (n,)."""
    judge = SentimentIntensityAnalyzer()
    scores = [[judge.polarity_scores(text)["compound"] for text in pair.texts] for pair in pairs]
    return torch.tensor([first - second for first, second in scores], dtype=torch.float64)


def report(
    root: Path, name: str, rewards: Sequence[str], seed: int, most: int | None = None
) -> dict[str, dict[str, Any]]:
    """The numbers of a file: of the raters, of the rules, of each reward model, and of all of them together."""
    pairs = read_pairs(root, name, most)
    gaps = torch.tensor([pair.gap for pair in pairs], dtype=torch.float64)
    p_first = torch.tensor([pair.p_first for pair in pairs], dtype=torch.float64)
    found: dict[str, dict[str, Any]] = {
        who: {"accuracy": by_gap(worth, gaps)} for who, worth in of_raters(pairs, seed).items()
    }
    margins = {"vaderSentiment": rules(pairs)}
    models = {
        short: torch.tensor(reward_margins(root / path, root, name, most)[0], dtype=torch.float64)
        for short, path in zip(short_names(rewards), rewards, strict=True)
    }
    if len(models) > 1:
        models[f"mean of {len(models)}"] = torch.stack([*models.values()]).mean(0)
    for who, margin in (margins | models).items():
        right = credit(margin, torch.ones_like(margin))
        found[who] = {
            "accuracy": by_gap(right, gaps),
            "agreement": wilson_mean(agreement(margin, p_first)),
        }
        if who in models:
            found[who] |= {
                "calibration": calibration(margin, p_first, seed),
                "temperature": best_temperature(margin, p_first),
                "p_first_model": _against(right, next(iter(models.values())), gaps),
            }
    return found


def _against(right: Tensor, first: Tensor, gaps: Tensor) -> float:
    """McNemar's p-value against the first model on pairs with a gap of at least 0.5."""
    far = gaps >= 0.5
    one, other = right[far] == 1, credit(first, torch.ones_like(first))[far] == 1
    return mcnemar_test(int((one & ~other).sum()), int((~one & other).sum()))


def show(title: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each who judges."""
    table = Table(title=title, title_justify="left")
    table.add_column("who")
    heads = [f"gap >= {threshold:g}" for threshold in THRESHOLDS]
    for head in (*heads, "agrees with a rater", "ECE", "temperature", "p, first model"):
        table.add_column(head, justify="right")
    for who, row in found.items():
        cells = [_spell(each) for each in row["accuracy"].values()]
        cells += [_spell(row[key]) if key in row else "" for key in ("agreement", "calibration")]
        cells += [
            f"{row[key]:.2g}" if key in row else "" for key in ("temperature", "p_first_model")
        ]
        table.add_row(who, *cells)
    return table


def _spell(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Reward models beside the raters themselves.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--rewards", nargs="*", default=[], help="exports, under the root")
    parser.add_argument(
        "--pairs", nargs="+", default=["heldout"], help="which files: heldout, products, ..."
    )
    parser.add_argument("--first", type=int, help="so many pairs of each; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of halves and of the bootstrap")
    options = parser.parse_args(args)
    console = Console(width=200)
    found = {}
    for name in options.pairs:
        found[name] = report(
            options.root, f"pairs_{name}", options.rewards, options.seed, options.first
        )
        console.print(show(f"pairs_{name}.jsonl", found[name]))
    text = json.dumps(found, indent=2)
    (options.root / "raters.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
