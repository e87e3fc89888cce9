"""What `recipes.py` tells of its runs: numbers of each, paired tests, and tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.human_sentiment.labelled import SCALE, Pairs
from benchmarks.human_sentiment.raters import RatedPair, by_gap, calibration_error, credit
from benchmarks.human_sentiment.recipe_arms import ARMS
from benchmarks.markdown import spelled, table
from lit_rlhf.metrics import Estimate, agreement, best_temperature, bootstrap_mean, mcnemar_test

OTHERS = ("products", "editorials", "tweets")
_FAR = 0.5
Scores = Mapping[str, float]
Runs = Mapping[int, Scores]


@dataclass(frozen=True)
class Held:
    """Held-out sentences.

    Attributes:
        pairs: By domain.
        unseen: Training lists whose sentences no arm and no seed learns from.
    """

    pairs: Mapping[str, Sequence[RatedPair]]
    unseen: Pairs

    def texts(self, domains: Iterable[str]) -> list[str]:
        """All sentences of these and of the unseen lists, once."""
        texts = [text for name in domains for pair in self.pairs[name] for text in pair.texts]
        texts += [text.strip() for row in self.unseen for text in row["completions"]]
        return list(dict.fromkeys(texts))


def margins(scores: Scores, pairs: Sequence[RatedPair]) -> Tensor:
    """Of the better-rated sentence less the other's, (n,)."""
    return torch.tensor([scores[a] - scores[b] for a, b in (pair.texts for pair in pairs)]).double()


def mean_scores(runs: Sequence[Scores]) -> dict[str, float]:
    """An ensemble's: the mean of its members' scores."""
    return {
        text: fmean(run[text] for run in runs) for text in runs[0] if all(text in r for r in runs)
    }


def temperature(scores: Scores, unseen: Pairs) -> float:
    """By which scores are to be divided, found on all pairs of training lists that nobody learned from."""
    gaps, soft = [], []
    for row in unseen:
        rated = [*zip(row["completions"], row["scores"], strict=True)]
        for (one, high), (other, low) in combinations(rated, 2):
            gaps.append(scores[one.strip()] - scores[other.strip()])
            soft.append((high - low) / SCALE)
    return best_temperature(torch.tensor(gaps), torch.tensor(soft).double().sigmoid())


def numbers(scores: Scores, pairs: Sequence[RatedPair], warmth: float) -> dict[str, Any]:
    """Of one model on pairs: accuracy, agreement with a rater, calibration as it is and at a temperature."""
    found = margins(scores, pairs)
    gaps = torch.tensor([pair.gap for pair in pairs]).double()
    p_first = torch.tensor([pair.p_first for pair in pairs]).double()
    return {
        "accuracy": by_gap(credit(found, torch.ones_like(found)), gaps),
        "agreement": float(agreement(found, p_first).mean()),
        "ece": calibration_error(found, p_first),
        "temperature": warmth,
        "ece_at_temperature": calibration_error(found / warmth, p_first),
    }


@dataclass(frozen=True)
class Paired:
    """Two recipes on the same far pairs; differences are the second's accuracy less the first's.

    Attributes:
        difference: Mean over seeds, and its bootstrap interval over pairs.
        seeds: Of each seed.
        p_values: McNemar's, of each seed.
    """

    difference: Estimate
    seeds: list[float]
    p_values: list[float]


def paired(first: Sequence[Scores], second: Sequence[Scores], pairs: Sequence[RatedPair]) -> Paired:
    """Compare runs of two recipes, seed by seed, on pairs with a gap of at least 0.5.

    Seeds judge the same pairs, so the interval is of draws of pairs, each with the mean over its seeds: it holds for
    other pairs, not for other seeds.
    """
    far = [pair for pair in pairs if pair.gap >= _FAR]
    right = [
        torch.stack([credit(m, torch.ones_like(m)) for m in (margins(run, far) for run in runs)])
        for runs in (first, second)
    ]  # (seeds, pairs) each
    alone = [
        (int(((a == 1) & (b < 1)).sum()), int(((a < 1) & (b == 1)).sum()))
        for a, b in zip(*right, strict=True)
    ]
    gained = right[1] - right[0]
    return Paired(
        bootstrap_mean(gained.mean(0)), gained.mean(-1).tolist(), [mcnemar_test(*n) for n in alone]
    )


def summary(runs: Mapping[str, Runs], held: Held) -> dict[str, Any]:
    """All numbers: of each run, of each recipe's ensemble, and what is paired with what."""
    found: dict[str, Any] = {}
    films = held.pairs["heldout"]
    for name, seeds in runs.items():
        members = {str(seed): scores for seed, scores in seeds.items()}
        together = {"ensemble": mean_scores([*seeds.values()])} if len(seeds) > 1 else {}
        found[name] = {"models": {}}
        for who, scores in (members | together).items():
            warmth = temperature(scores, held.unseen)
            found[name]["models"][who] = {
                domain: numbers(scores, pairs, warmth)
                for domain, pairs in held.pairs.items()
                if all(text in scores for pair in pairs for text in pair.texts)
            }
        if together:
            several = [together["ensemble"]] * len(seeds)
            found[name]["ensemble_less_one"] = vars(paired([*seeds.values()], several, films))
        beside = ARMS[name].beside if name in ARMS else None
        shared = sorted(seeds.keys() & runs.get(beside or "", {}).keys())
        if beside and shared:
            ours, theirs = ([each[seed] for seed in shared] for each in (seeds, runs[beside]))
            found[name] |= {"beside": beside, "paired": vars(paired(theirs, ours, films))}
    return found


def shown(found: Mapping[str, Any]) -> str:
    """Markdown: a line for each recipe, mean and deviation over seeds, and for its ensemble."""
    rows = []
    for name, each in found.items():
        models = each["models"]
        ones = [row["heldout"] for who, row in models.items() if who != "ensemble"]
        rows.append(_cells(name, len(ones), ones, each.get("beside", ""), each.get("paired")))
        if "ensemble" in models:
            own = [models["ensemble"]["heldout"]]
            less = each["ensemble_less_one"]
            rows.append(_cells(f"{name}, ensemble", len(ones), own, "one", less))
    heads = ["recipe", "seeds", "accuracy", "at 0.5", "ECE", "temperature", "ECE at it"]
    return table([*heads, "at 0.5 against"], rows)


def domains(found: Mapping[str, Any]) -> str:
    """Markdown: of each recipe and its ensemble accuracy at a difference of 0.5, and ECE at films' temperature."""
    lines = []
    for name, each in found.items():
        models = each["models"]
        ones = [row for who, row in models.items() if who != "ensemble"]
        several = [(f"{name}, ensemble", [models["ensemble"]])] if "ensemble" in models else []
        for who, rows in [(name, ones), *several]:
            cells = [
                f"{spelled([row[domain]['accuracy']['0.5'][0] for row in rows], '.3f')}, ECE "
                f"{spelled([row[domain]['ece_at_temperature'] for row in rows], '.3f')}"
                for domain in OTHERS
                if domain in rows[0]
            ]
            if cells:
                lines.append([who, *cells])
    return table(["recipe", *OTHERS], lines) if lines else ""


def _cells(
    name: str, seeds: int, rows: Sequence[Mapping[str, Any]], beside: str, paired: Any
) -> list[str]:
    columns = [[row["accuracy"][gap][0] for row in rows] for gap in ("0", "0.5")]
    columns += [[row[key] for row in rows] for key in ("ece", "temperature", "ece_at_temperature")]
    against = ""
    if paired:
        value, low, high = paired["difference"]
        p = ", ".join(f"{each:.2g}" for each in paired["p_values"])
        against = f"{beside}: {value:+.3f} ({low:+.3f} to {high:+.3f}); p {p}"
    return [name, str(seeds), *(spelled(values, ".3f") for values in columns), against]
