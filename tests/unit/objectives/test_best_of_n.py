"""The reward of the best of n: against the best of n counted out, and places among anchors against counting."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional import best_of_n_kl
from lit_rlhf.objectives import BestOfN, places_among
from tests.tolerances import FP64

REFERENCE = torch.tensor([0.1, 0.25, 0.05, 0.4, 0.2], dtype=torch.float64)
SCORES = {"distinct": [0.3, -1.0, 2.0, 0.1, 0.7], "ties": [1.0, 0.0, 1.0, 0.0, 2.0]}


def shares(scores: list[float]) -> tuple[Tensor, Tensor]:
    below = [
        sum(p for p, s in zip(REFERENCE.tolist(), scores, strict=True) if s < own) for own in scores
    ]
    at_most = [
        sum(p for p, s in zip(REFERENCE.tolist(), scores, strict=True) if s <= own)
        for own in scores
    ]
    lower, equal = (torch.tensor(side, dtype=torch.float64) for side in (below, at_most))
    return lower, equal


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_it_turns_the_reference_into_the_best_of_n(scores: list[float], n: int) -> None:
    counted = torch.zeros_like(REFERENCE)
    for drawn in product(range(5), repeat=n):
        top = max(scores[y] for y in drawn)
        first = next(y for y in drawn if scores[y] == top)
        counted[first] += math.prod(float(REFERENCE[y]) for y in drawn)
    below, at_most = shares(scores)
    found = BestOfN(n)(below, at_most)
    assert_close(REFERENCE * found.exp(), counted, **FP64)


def test_large_n_neither_overflows_nor_exceeds_its_logarithm() -> None:
    below, at_most = torch.tensor([0.0, 0.5, 0.98]), torch.tensor([1e-3, 0.51, 1.0])
    found = BestOfN(4096)(below, at_most)
    assert torch.isfinite(found).all()
    assert (found.diff() > 0).all()
    assert float(found.max()) <= math.log(4096)


def test_without_ties_the_kl_is_the_known_one() -> None:
    size, n = 20_000, 8
    places = torch.arange(size, dtype=torch.float64) / size
    ratio = BestOfN(n)(places, places + 1 / size)
    kl = (ratio.exp() / size * ratio).sum()
    assert float(kl) == pytest.approx(best_of_n_kl(n), abs=1e-3)


def test_places_are_counted_and_the_sample_counts_itself() -> None:
    draws = torch.Generator().manual_seed(0)
    scores, anchors = (torch.randint(0, 4, (3, k), generator=draws).double() for k in (2, 7))
    below, at_most = places_among(scores, anchors)
    for b in range(3):
        for k in range(2):
            own, others = float(scores[b, k]), anchors[b].tolist()
            assert float(below[b, k]) == pytest.approx(sum(s < own for s in others) / 8)
            assert float(at_most[b, k]) == pytest.approx((1 + sum(s <= own for s in others)) / 8)
    assert (at_most > below).all()
    assert_close(places_among(3 * scores - 5, 3 * anchors - 5)[0], below, **FP64)


def test_an_n_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"BestOfN.*n=0.*1 or more"):
        BestOfN(0)
