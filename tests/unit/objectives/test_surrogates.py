"""The surrogates against references of one token at a time: options, metrics, what they refuse."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.functional.policy_losses import approx_kl, token_ratio
from lit_rlhf.objectives import (
    ClippedSurrogate,
    Reinforce,
    SequenceClipped,
    Surrogate,
    WeightClipped,
)
from tests.reference import policy_losses as reference
from tests.reference.batches import ragged, ragged_mask, rows
from tests.reference.preference_stats import concrete
from tests.tolerances import FP32, FP64

MASK = ragged_mask()
NEW, OLD = (ragged(MASK, seed=seed) for seed in range(2))
ADVANTAGES = ragged(MASK, seed=3, garbage=0.0)
RATIO = token_ratio(NEW, OLD, MASK)


SURROGATES = [ClippedSurrogate(), SequenceClipped(), WeightClipped(), Reinforce()]


def test_the_list_has_every_surrogate() -> None:
    assert concrete(Surrogate) == {type(surrogate).__name__ for surrogate in SURROGATES}


# -- formulas ---------------------------------------------------------------------------------------------------------


def _grid(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs whose ratios go from 0.3 to 4, away from the corners of the clip, and advantages of either sign."""
    ratio, advantages = torch.meshgrid(
        torch.linspace(0.31, 4.01, 23, dtype=torch.float64),
        torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64),
        indexing="ij",
    )
    old = -torch.rand_like(ratio)
    new = (old + ratio.log()).to(dtype)
    return new, old.to(dtype), advantages.to(dtype), torch.ones_like(ratio, dtype=torch.bool)


def _slow(function: Callable[..., float], *columns: Tensor, options: Sequence[Any]) -> Tensor:
    lines = [[float(x) for x in column.flatten()] for column in columns]
    values = [function(*row, *options) for row in zip(*lines, strict=True)]
    return torch.tensor(values, dtype=torch.float64).view(columns[0].shape)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, (0.2, 0.2, None)),
        ({"low": 0.2, "high": 0.28}, (0.2, 0.28, None)),
        ({"low": 1.0, "high": 0.5, "dual": 3.0}, (1.0, 0.5, 3.0)),
    ],
)
def test_clipped_surrogate_matches_its_cases(
    options: dict[str, float],
    numbers: Sequence[Any],
    dtype: torch.dtype,
    tolerance: dict[str, float],
) -> None:
    new, old, advantages, mask = _grid(dtype)
    got = ClippedSurrogate(**options)(new, old, advantages, mask).loss
    ratio = (new - old).exp()
    expected = _slow(reference.clipped, ratio, advantages, options=numbers)
    assert_close(got.double(), expected, **tolerance)


def test_gradients_stop_where_the_clip_metrics_say() -> None:
    new, old, advantages, mask = _grid()
    new.requires_grad_()
    out = ClippedSurrogate(0.2, 0.28)(new, old, advantages, mask)
    (grad,) = torch.autograd.grad(out.loss.sum(), new)
    stopped = (grad == 0) & (advantages != 0)
    assert torch.equal(stopped, out.metrics["policy/clipfrac_avg"].bool())
    assert out.metrics["clip_ratio/low_mean"].sum() > 0
    assert out.metrics["clip_ratio/high_mean"].sum() > 0


def test_dual_clip_stops_runaway_negative_advantages() -> None:
    new = torch.tensor([[2.9, 3.1]]).log().requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = ClippedSurrogate(dual=3.0)(new, torch.zeros(1, 2), torch.full((1, 2), -1.0), mask).loss
    assert_close(loss, torch.tensor([[2.9, 3.0]]), **FP32)
    (grad,) = torch.autograd.grad(loss.sum(), new)
    assert_close(grad, torch.tensor([[2.9, 0.0]]), **FP32)


@pytest.mark.parametrize(
    ("options", "numbers"), [({}, (None, 4.0)), ({"low": 0.3, "high": 1.5}, (0.3, 1.5))]
)
def test_weight_clipped_matches_its_cases_and_keeps_every_gradient(
    options: dict[str, float], numbers: Sequence[Any]
) -> None:
    new, old, advantages, mask = _grid()
    new.requires_grad_()
    loss = WeightClipped(**options)(new, old, advantages, mask).loss
    ratio = (new - old).exp().detach()
    expected = _slow(reference.weight_clipped, ratio, new.detach(), advantages, options=numbers)
    assert_close(loss.detach(), expected, **FP64)
    (grad,) = torch.autograd.grad(loss.sum(), new)
    weights = _slow(
        lambda r, a: reference.weight_clipped(r, 1.0, a, *numbers), ratio, advantages, options=()
    )
    assert_close(grad, weights, **FP64)  # the weight itself is not differentiated
    assert torch.equal(grad == 0, advantages == 0)


@pytest.mark.parametrize(
    ("options", "numbers"), [({}, (3e-4, 4e-4)), ({"low": 0.1, "high": 0.3}, (0.1, 0.3))]
)
def test_sequence_clipped_clips_the_geometric_mean(
    options: dict[str, float], numbers: Sequence[Any]
) -> None:
    loss = SequenceClipped(**options)(NEW, OLD, ADVANTAGES, MASK).loss
    for n, (new, old) in enumerate(zip(rows(NEW, MASK), rows(OLD, MASK), strict=True)):
        ratio = reference.geometric_mean_ratio(new, old)
        for t in range(len(new)):
            expected = reference.clipped(ratio, float(ADVANTAGES[n, t]), *numbers, None)
            assert_close(float(loss[n, t]), expected, **FP64)


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    assert_close(
        Reinforce()(NEW, OLD, ADVANTAGES, MASK).loss[MASK], -(ADVANTAGES * NEW)[MASK], **FP64
    )


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_the_gradient_at_ratio_one_is_the_policy_gradient(surrogate: Surrogate) -> None:
    start, advantages = torch.where(MASK, OLD, 0.0), torch.where(MASK, ADVANTAGES, 0.0)
    new = start.clone().requires_grad_()
    loss = surrogate(new, start, advantages, MASK).loss
    (grad,) = torch.autograd.grad(masked_sum(loss, MASK), new)
    assert_close(grad, -advantages, **FP64)


def test_gradcheck_away_from_corners() -> None:
    mask = ragged_mask((1, 2, 3))
    new, old, advantages = (ragged(mask, seed=seed, garbage=0.0) for seed in range(3))
    new.requires_grad_()
    surrogate = ClippedSurrogate()
    assert torch.autograd.gradcheck(lambda x: surrogate(x, old, advantages, mask).loss, (new,))


# -- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_the_first_minibatch_has_ratio_one_and_clips_nothing(surrogate: Surrogate) -> None:
    metrics = surrogate(OLD.clone().requires_grad_(), OLD, ADVANTAGES, MASK).metrics
    assert torch.equal(metrics["val/ratio"], torch.ones_like(OLD))
    for name in set(metrics) - {"val/ratio"}:
        assert float(metrics[name][MASK].abs().sum()) == 0.0, name


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_metrics_are_detached_and_of_the_shape_of_the_loss(surrogate: Surrogate) -> None:
    output = surrogate(NEW.clone().requires_grad_(), OLD, ADVANTAGES, MASK)
    assert output.loss.requires_grad
    for value in output.metrics.values():
        assert value.shape == output.loss.shape
        assert not value.requires_grad
    assert_close(output.metrics["policy/approxkl_avg"], approx_kl(NEW, OLD, MASK), **FP64)


def test_clip_metrics_add_up() -> None:
    advantages = torch.where(
        MASK, torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64), 0.0
    )
    metrics = ClippedSurrogate(0.1, 0.3)(NEW, OLD, advantages, MASK).metrics
    low, high = metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]
    assert torch.equal(low.bool(), (RATIO < 0.9) & (advantages < 0))
    assert torch.equal(high.bool(), (RATIO > 1.3) & (advantages > 0))
    assert low.sum() > 0
    assert high.sum() > 0
    assert torch.equal(metrics["policy/clipfrac_avg"], low + high)
    cispo = WeightClipped(high=0.3)(NEW, OLD, ADVANTAGES, MASK).metrics["cispo_clip_ratio"]
    assert torch.equal(cispo.bool(), RATIO > 1.3)
    assert 0 < float(cispo.sum()) < float(MASK.sum())


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_padding_gets_no_gradient_through_a_reduction(surrogate: Surrogate) -> None:
    new = NEW.clone().requires_grad_()
    loss = surrogate(new, OLD, ADVANTAGES, MASK).loss
    (grad,) = torch.autograd.grad(torch.where(MASK, loss, 0.0).sum(), new)
    assert torch.equal(grad[~MASK], torch.zeros_like(grad[~MASK]))
    assert torch.isfinite(grad).all()


def test_reinforce_alone_is_for_one_step() -> None:
    surrogates = (Reinforce(), ClippedSurrogate(), SequenceClipped(), WeightClipped())
    assert [surrogate.on_policy_only for surrogate in surrogates] == [True, False, False, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ClippedSurrogate(low=0.0),
            r"ClippedSurrogate\(low=0.0\): low must be in \(0, 1\]",
        ),
        (lambda: ClippedSurrogate(low=1.2), r"low=1.2"),
        (
            lambda: ClippedSurrogate(high=-0.1),
            r"ClippedSurrogate\(high=-0.1\): high must be above 0",
        ),
        (
            lambda: ClippedSurrogate(dual=1.0),
            r"ClippedSurrogate\(dual=1.0\): dual must be above 1, or None",
        ),
        (lambda: SequenceClipped(low=-1e-4), r"SequenceClipped\(low=-0.0001\)"),
        (lambda: SequenceClipped(high=float("nan")), r"SequenceClipped\(high=nan\)"),
        (lambda: WeightClipped(high=0.0), r"WeightClipped\(high=0.0\)"),
        (
            lambda: WeightClipped(low=0.0),
            r"WeightClipped\(low=0.0\): low must be in \(0, 1\], or None",
        ),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigurationError, match=message):
        make()
