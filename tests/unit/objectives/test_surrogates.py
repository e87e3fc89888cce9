"""The surrogate classes: their options reach the formula, their metrics, what they refuse."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.kl import biased_k3_loss, sequence_k2_loss, unbiased_k3_loss
from lit_rlhf.functional.policy_losses import (
    approx_kl,
    clipped_surrogate,
    reinforce_loss,
    sequence_ratio,
    token_ratio,
    weight_clipped_surrogate,
)
from lit_rlhf.objectives import (
    BiasedK3,
    ClippedSurrogate,
    KLLoss,
    Reinforce,
    SequenceClipped,
    SequenceK2,
    Surrogate,
    UnbiasedK3,
    WeightClipped,
)
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP64

MASK = ragged_mask()
NEW, OLD, REF = (ragged(MASK, seed=seed) for seed in range(3))
ADVANTAGES = ragged(MASK, seed=3, garbage=0.0)
RATIO = token_ratio(NEW, OLD, MASK)


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        (ClippedSurrogate(), clipped_surrogate(RATIO, ADVANTAGES, 0.2, 0.2)),
        (ClippedSurrogate(0.1, 0.4, 2.0), clipped_surrogate(RATIO, ADVANTAGES, 0.1, 0.4, 2.0)),
        (
            SequenceClipped(),
            clipped_surrogate(sequence_ratio(NEW, OLD, MASK), ADVANTAGES, 3e-4, 4e-4),
        ),
        (
            SequenceClipped(0.1, 0.3),
            clipped_surrogate(sequence_ratio(NEW, OLD, MASK), ADVANTAGES, 0.1, 0.3),
        ),
        (WeightClipped(), weight_clipped_surrogate(RATIO, NEW, ADVANTAGES, None, 4.0)),
        (WeightClipped(0.1, 0.3), weight_clipped_surrogate(RATIO, NEW, ADVANTAGES, 0.1, 0.3)),
        (Reinforce(), reinforce_loss(NEW, ADVANTAGES)),
    ],
)
def test_options_reach_the_formula(surrogate: Surrogate, expected: Tensor) -> None:
    assert_close(surrogate(NEW, OLD, ADVANTAGES, MASK).loss[MASK], expected[MASK], **FP64)


@pytest.mark.parametrize(
    "surrogate", [ClippedSurrogate(), SequenceClipped(), WeightClipped(), Reinforce()]
)
def test_the_first_minibatch_has_ratio_one_and_clips_nothing(surrogate: Surrogate) -> None:
    metrics = surrogate(OLD.clone().requires_grad_(), OLD, ADVANTAGES, MASK).metrics
    assert torch.equal(metrics["val/ratio"], torch.ones_like(OLD))
    for name in set(metrics) - {"val/ratio"}:
        assert float(metrics[name][MASK].abs().sum()) == 0.0, name


@pytest.mark.parametrize(
    "surrogate", [ClippedSurrogate(), SequenceClipped(), WeightClipped(), Reinforce()]
)
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


@pytest.mark.parametrize(
    "surrogate", [ClippedSurrogate(), SequenceClipped(), WeightClipped(), Reinforce()]
)
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
    ("kl_loss", "expected"),
    [
        (UnbiasedK3(), unbiased_k3_loss(NEW, OLD, REF, MASK)),
        (SequenceK2(), sequence_k2_loss(NEW, OLD, REF, MASK)),
        (BiasedK3(), biased_k3_loss(NEW, REF, MASK)),
    ],
)
def test_kl_losses_call_their_functions(kl_loss: KLLoss, expected: Tensor) -> None:
    assert_close(kl_loss(NEW, OLD, REF, MASK), expected, **FP64)


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
