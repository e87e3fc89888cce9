"""Losses of lists against loops over the completions that exist, and their invariances."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import objectives as o
from tests.reference import preference_losses as slow
from tests.reference.batches import ragged, ragged_mask
from tests.reference.preference_stats import concrete
from tests.tolerances import FP32, FP64

MASK = ragged_mask((4, 2, 3, 1, 0, 4))
GAPS = torch.tensor([[True, False, True, True], [False, True, True, False]])


class Case(NamedTuple):
    """A loss and its reference, of one list and options; `columns` are u (log-ratios), l (log-probs), n (lengths)."""

    reference: Callable[..., float]
    columns: str
    defaults: dict[str, float]
    others: dict[str, float]


CASES = {
    "PlackettLuceDPO": Case(slow.plackett_luce, "u", {"beta": 0.1}, {"beta": 0.7}),
    "InfoNCA": Case(
        slow.info_nca, "u", {"beta": 0.01, "temperature": 1.0}, {"beta": 0.7, "temperature": 0.6}
    ),
    "NCA": Case(
        slow.nca, "u", {"beta": 0.01, "temperature": 1.0}, {"beta": 0.7, "temperature": 0.6}
    ),
    "LiPOLambda": Case(slow.lipo_lambda, "u", {"beta": 0.05}, {"beta": 0.7}),
    "PRO": Case(slow.pro, "l n", {"sft_weight": 0.05}, {"sft_weight": 0.3}),
    "RRHF": Case(
        slow.rrhf,
        "l n",
        {"length_power": 1.0, "rank_weight": 1.0},
        {"length_power": 0.8, "rank_weight": 0.7},
    ),
}


class Lists:
    """Lists of different lengths; what does not exist holds nan."""

    def __init__(self, mask: Tensor, dtype: torch.dtype = torch.float64, scale: float = 1) -> None:
        u, self.scores = (ragged(mask, seed=seed, dtype=dtype) for seed in (1, 2))
        lengths = torch.randint(1, 9, mask.shape, generator=torch.Generator().manual_seed(3)) * mask
        logprobs = -ragged(mask, seed=4, dtype=dtype).abs() * scale
        self.completions = o.Completion(logprobs, lengths, logprobs - u * scale)
        self.mask = mask

    def __call__(self, loss: o.ListwiseLoss) -> Tensor:
        return loss(self.completions, self.scores, self.mask)

    def expected(self, case: Case, options: dict[str, float]) -> Tensor:
        y = self.completions
        columns = {"u": y.logratios, "l": y.logprobs, "n": y.lengths}
        rows = []
        for i, exists in enumerate(self.mask):
            lists: list[Any] = [columns[n][i][exists].tolist() for n in case.columns.split()]
            scores = self.scores[i][exists].tolist()
            rows.append(case.reference(*lists, scores, *options.values()) if scores else 0.0)
        return torch.tensor(rows, dtype=self.scores.dtype)

    def in_order(self, order: list[int]) -> "Lists":
        turned = Lists(self.mask)
        y = self.completions
        assert y.ref_logprobs is not None
        turned.completions = o.Completion(
            y.logprobs[:, order], y.lengths[:, order], y.ref_logprobs[:, order]
        )
        turned.scores, turned.mask = self.scores[:, order], self.mask[:, order]
        return turned


def make(name: str, default: bool = False) -> o.ListwiseLoss:
    loss: o.ListwiseLoss = getattr(o, name)(**({} if default else CASES[name].others))
    return loss


def test_the_table_has_every_listwise_loss() -> None:
    assert concrete(o.ListwiseLoss) == set(CASES)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize("mask", [MASK, GAPS], ids=["ragged", "holes"])
@pytest.mark.parametrize("default", [True, False], ids=["defaults", "others"])
@pytest.mark.parametrize("name", CASES)
def test_matches_a_loop_over_what_exists(
    name: str, default: bool, mask: Tensor, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    lists, case = Lists(mask, dtype), CASES[name]
    expected = lists.expected(case, case.defaults if default else case.others)
    assert_close(lists(make(name, default)), expected, **tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", CASES)
def test_finite_gradients_and_none_of_what_does_not_exist(name: str, scale: float) -> None:
    lists = Lists(MASK, torch.float32, scale)
    sums = lists.completions.logprobs.clone().requires_grad_()
    lists.completions = replace(lists.completions, logprobs=sums)
    loss = lists(make(name))
    (gradient,) = torch.autograd.grad(loss.sum(), sums)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[~MASK] == 0).all()
    assert (gradient[0] != 0).any() or scale > 1


@pytest.mark.parametrize("name", CASES)
def test_order_of_the_branches_does_not_matter(name: str) -> None:
    lists, loss = Lists(MASK), make(name)
    assert_close(lists.in_order([2, 0, 3, 1])(loss), lists(loss), **FP64)


@pytest.mark.parametrize("name", ["PlackettLuceDPO", "InfoNCA", "LiPOLambda"])
def test_a_shift_of_the_prompt_changes_nothing(name: str) -> None:
    lists, loss = Lists(MASK), make(name)
    before, y = lists(loss), lists.completions
    assert y.ref_logprobs is not None
    lists.completions = replace(y, ref_logprobs=y.ref_logprobs - 3.0)
    assert_close(lists(loss), before, **FP64)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("NCA", "RRHF")])
def test_fewer_than_two_completions_rank_nothing(name: str) -> None:
    loss = Lists(MASK)(make(name))
    assert loss[3].item() == pytest.approx(0.0, abs=1e-12)
    assert loss[4].item() == 0.0


def test_two_completions_are_a_pair() -> None:
    both, lengths = torch.ones(5, 2, dtype=torch.bool), torch.ones(5, 2, dtype=torch.int64)
    u = torch.randn(5, 2, dtype=torch.float64)
    lists = o.Completion(u, lengths, torch.zeros_like(u))
    scores = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(5, 2)
    pair = o.DPO(0.4)(lists.branch(0), lists.branch(1))
    assert_close(o.PlackettLuceDPO(0.4)(lists, scores, both), pair, **FP64)
    # Gains 2 - 1, discounts of ranks 1 and 2.
    lambda_weight = 1 / math.log(2) - 1 / math.log(3)
    assert_close(o.LiPOLambda(0.4)(lists, scores, both), lambda_weight * pair, **FP64)
    assert_close(o.PRO(0.0)(lists, 0.4 * scores, both), pair, **FP64)


def test_lipo_weights_carry_no_gradient() -> None:
    """The ranks are constant near u, so the slope is that of the logistic terms with their weights held."""
    mask, lengths = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.int64)
    u = torch.tensor([[0.5, -0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return o.LiPOLambda(0.7)(o.Completion(x, lengths, torch.zeros_like(x)), scores, mask)

    assert torch.autograd.gradcheck(loss, (u,))
