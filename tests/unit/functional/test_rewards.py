"""Where scores sit, the KL term, penalties, running moments."""

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.rewards import (
    kl_penalized_scores,
    kl_shaped_rewards,
    missing_eos_penalty,
    overlong_penalty,
    place_at_end,
)
from tests.reference import advantages as reference
from tests.reference.batches import DTYPES, LENGTHS, filled, ragged, ragged_mask, rows
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
MASK = ragged_mask()
SCORES = torch.arange(1.0, len(LENGTHS) + 1, dtype=torch.float64)


def test_the_score_sits_at_the_last_token_alone() -> None:
    placed = place_at_end(SCORES, MASK)
    for n, length in enumerate(LENGTHS):
        expected = torch.zeros(7, dtype=torch.float64)
        if length:
            expected[length - 1] = SCORES[n]
        assert torch.equal(placed[n], expected)


def test_the_last_token_is_found_behind_gaps() -> None:
    mask = torch.tensor([[True, False, True, False]])
    assert place_at_end(torch.tensor([2.0]), mask).tolist() == [[0.0, 0.0, 2.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_shaped_rewards_match_the_loop(dtype: torch.dtype) -> None:
    logprobs, ref = ragged(MASK, seed=0, dtype=dtype), ragged(MASK, seed=1, dtype=dtype)
    got = kl_shaped_rewards(SCORES.to(dtype), logprobs, ref, MASK, 0.3)
    lists = [
        reference.kl_shaped(float(score), p, q, 0.3)
        for score, p, q in zip(SCORES, rows(logprobs, MASK), rows(ref, MASK), strict=True)
    ]
    assert got.dtype == dtype
    assert_close(got.double(), filled(lists, 7), **TOLERANCE[dtype])


def test_both_placements_of_the_penalty_have_the_same_return() -> None:
    logprobs, ref = ragged(MASK, seed=0), ragged(MASK, seed=1)
    tokens = kl_shaped_rewards(SCORES, logprobs, ref, MASK, 0.3)
    sequences = kl_penalized_scores(SCORES, logprobs, ref, MASK, 0.3)
    full = MASK.any(-1)
    assert_close(tokens.sum(-1)[full], sequences[full], **FP64)
    assert float(tokens[~full].sum()) == 0.0
    assert torch.equal(sequences[~full], SCORES[~full])


def test_staying_at_the_reference_costs_nothing() -> None:
    logprobs = ragged(MASK)
    assert torch.equal(
        kl_shaped_rewards(SCORES, logprobs, logprobs, MASK, 5.0), place_at_end(SCORES, MASK)
    )


def test_missing_ends_are_penalized() -> None:
    scores, finished = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([True, False, False])
    assert missing_eos_penalty(scores, finished, 0.5).tolist() == [1.0, 1.5, -3.5]


def test_overlong_penalty_matches_its_cases() -> None:
    lengths = torch.arange(0, 30)
    got = overlong_penalty(lengths, max_length=20, buffer=8)
    expected = [reference.overlong(n, 20, 8) for n in range(30)]
    assert_close(got, torch.tensor(expected), **FP32)


@pytest.mark.parametrize("buffer", [0, 21])
def test_a_buffer_out_of_range_is_refused(buffer: int) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"buffer={buffer} must be above 0 and no more than max_length=20"
    ):
        overlong_penalty(torch.tensor([1]), max_length=20, buffer=buffer)
