"""Weights of tokens that an engine sampled with other log-probs: bounded, detached, 1 where masked."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.objectives import ImportanceCorrection, MaskedImportance, TruncatedImportance
from tests.reference.batches import ragged, ragged_mask
from tests.reference.preference_stats import concrete
from tests.tolerances import FP32, FP64

MASK = ragged_mask()
TRAIN, ENGINE = (ragged(MASK, seed=seed) for seed in range(2))


def test_there_are_two() -> None:
    assert concrete(ImportanceCorrection) == {"TruncatedImportance", "MaskedImportance"}


@pytest.mark.parametrize("cap", [2.0, 0.9])
def test_truncated_is_the_smaller_of_ratio_and_cap(cap: float) -> None:
    got = TruncatedImportance(cap)(TRAIN, ENGINE, MASK)
    for n, t in MASK.nonzero().tolist():
        ratio = math.exp(float(TRAIN[n, t])) / math.exp(float(ENGINE[n, t]))
        assert_close(float(got[n, t]), min(ratio, cap), **FP64)


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.9, 1.1)])
def test_masked_is_the_ratio_or_nothing(low: float, high: float) -> None:
    got = MaskedImportance(low, high)(TRAIN, ENGINE, MASK)
    for n, t in MASK.nonzero().tolist():
        ratio = math.exp(float(TRAIN[n, t])) / math.exp(float(ENGINE[n, t]))
        assert_close(float(got[n, t]), ratio if low <= ratio <= high else 0.0, **FP64)


def test_they_are_detached_and_bounded() -> None:
    train = torch.tensor([[0.0, -1.0, -1.0, -3.0]], requires_grad=True)
    engine = torch.tensor([[-1.0, -1.0, float("nan"), -1.0]])
    mask = torch.tensor([[True, True, False, True]])
    truncated = TruncatedImportance()(train, engine, mask)
    assert_close(truncated, torch.tensor([[2.0, 1.0, 1.0, math.exp(-2)]]), **FP32)
    masked = MaskedImportance()(train, engine, mask)
    assert_close(masked, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), **FP32)
    assert not truncated.requires_grad
    assert not masked.requires_grad


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"TruncatedImportance\(cap=0\)"):
        TruncatedImportance(0)
    with pytest.raises(ConfigurationError, match="low must be"):
        MaskedImportance(low=1.0)
    with pytest.raises(ConfigurationError, match="high must be"):
        MaskedImportance(high=1.0)
