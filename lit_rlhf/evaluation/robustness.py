"""How often changes that say nothing turn a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.data import InvalidRowError
from lit_rlhf.evaluation.comparisons import Comparison
from lit_rlhf.evaluation.scorers import Scorer
from lit_rlhf.evaluation.texts import changed, doubled_spaces, polite_ending, turned_round
from lit_rlhf.metrics import Estimate, wilson_mean
from lit_rlhf.seeding import generator

Change = Callable[[Comparison, Tensor], Comparison]
ORDER = "answers in the other order"
CHANGES: dict[str, Change] = {
    "spaces doubled": lambda each, _: changed(each, doubled_spaces),
    "a line break at the end": lambda each, _: changed(each, lambda text: text + " \n"),
    "all in lower case": lambda each, _: changed(each, str.lower),
    "a polite ending": lambda each, _: changed(each, polite_ending),
    "a polite ending of the lowest": lambda each, scores: changed(
        each, polite_ending, only=int(scores.argmin())
    ),
    ORDER: lambda each, _: turned_round(each),
}
"""Of a comparison and its scores."""


@dataclass(frozen=True)
class Turned:
    """What a change did.

    Attributes:
        change: Its name.
        rows: Comparisons that it changed, and that could be scored.
        turned: Share of them in which another answer scores highest now (Wilson).
        shift: Mean change of a difference of scores, in standard deviations of these differences.
    """

    change: str
    rows: int
    turned: Estimate
    shift: float


def perturb(
    scorer: Scorer, scored: Sequence[tuple[Comparison, Tensor, int]], count: int, seed: int = 0
) -> list[Turned]:
    """Score some comparisons again after small changes of their answers.

    Args:
        scorer: What scored them.
        scored: Comparisons with their scores (K,) and the cluster of each; see `wilson_mean`.
        count: How many, drawn at random where there are more.
        seed: Of which these are.
    """
    order = torch.randperm(len(scored), generator=generator(seed, "perturbed")).tolist()
    chosen = [scored[place] for place in sorted(order[:count])]
    spread = torch.cat([scores - scores.mean() for _, scores, _ in chosen]).std(correction=0)
    found = []
    for name, change in CHANGES.items():
        both = [
            (new, scores, place)
            for one, scores, place in chosen
            if (new := change(one, scores)).answers != one.answers
        ]
        after = scorer.score([new for new, *_ in both])
        kept = [
            (scores, new.total.flip(0) if name == ORDER else new.total, place)
            for (_, scores, place), new in zip(both, after, strict=True)
            if not isinstance(new, InvalidRowError)
        ]
        pairs = [(old, new) for old, new, _ in kept]
        if not pairs:
            continue
        verdicts = [((old == old.max()) != (new == new.max())).any() for old, new in pairs]
        moved = torch.cat([((new - new.mean()) - (old - old.mean())).abs() for old, new in pairs])
        places = torch.tensor([place for *_, place in kept])
        turned = wilson_mean(torch.stack(verdicts), places)
        far = float(moved.mean()) / float(spread) if spread > 0 else 0.0
        found.append(Turned(name, len(pairs), turned, far))
    return found
