import math

import pytest
import torch
from scipy.stats import chisquare
from transformers import TopKLogitsWarper, TopPLogitsWarper

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rollout import Sampling
from lit_rlhf.rollout.sampling import _first_above, draw_tokens, inverse_cdf, truncate_logits
from lit_rlhf.seeding import uniforms
from tests.reference import rollout as reference
from tests.tolerances import FP32

ALMOST_ONE = 1 - 2.0**-53
SIZES = [1, 2, 127, 128, 129, 1000, 49152, 50257]


def logits_of(size: int, rows: int = 1, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, size) * spread


def evenly(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("size", SIZES)
def test_inverse_cdf_lands_where_the_exact_cumulative_sum_says(size: int) -> None:
    weights = logits_of(size, rows=7).exp()
    u = uniforms(torch.arange(7), 0)
    index = inverse_cdf(weights, u)
    exact = weights.double().cumsum(-1)
    target = u * exact[:, -1]
    slack = 1e-6 * exact[:, -1]
    above = exact.gather(-1, index[:, None])[:, 0]
    below = above - weights.double().gather(-1, index[:, None])[:, 0]
    assert (target <= above + slack).all()
    assert (target >= below - slack).all()


def test_inverse_cdf_equals_a_walk_over_the_tokens() -> None:
    probs = torch.softmax(logits_of(300, rows=50), -1)
    u = uniforms(torch.arange(50), 3)
    walked = [
        reference.pick(row.double().tolist(), float(x)) for row, x in zip(probs, u, strict=True)
    ]
    assert inverse_cdf(probs, u).tolist() == walked


@pytest.mark.parametrize("size", [5, 300, 4096])
def test_each_token_gets_its_share_of_evenly_spaced_uniforms(size: int) -> None:
    probs = torch.softmax(logits_of(size)[0], -1)
    count = 20_000
    drawn = inverse_cdf(probs.expand(count, -1), evenly(count))
    shares = drawn.bincount(minlength=size).double() / count
    # At most one point more or less fits into an interval than its length says.
    assert ((shares - probs.double()).abs() <= 1.0 / count + 1e-6).all()


def test_sampled_frequencies_pass_a_chi_square_test_against_the_softmax() -> None:
    logits = logits_of(60, spread=1.0)
    count = 40_000
    tokens, _ = draw_tokens(
        logits.expand(count, -1).clone(), uniforms(torch.arange(count), 5), Sampling()
    )
    observed = tokens.bincount(minlength=60).double().numpy()
    expected = torch.softmax(logits[0].double(), -1).numpy() * count
    assert chisquare(observed, expected).pvalue > 1e-3


def test_a_flat_distribution_over_a_large_vocabulary_keeps_its_mass_to_the_last_token() -> None:
    size = 151_936
    weights = torch.full((1, size), 0.1).expand(400, -1)
    drawn = inverse_cdf(weights, evenly(400))
    wanted = (evenly(400) * size).floor().long()
    assert (drawn - wanted).abs().max() <= 1


def test_tokens_less_likely_than_float32_can_add_to_one_are_drawn_as_often_as_they_should() -> None:
    size, tiny, draws = 4096, 2e-8, 4
    weights = torch.full((1, size), tiny)
    weights[0, 0] = 1.0
    tail = (size - 1) * tiny
    u = (1.0 + evenly(draws * (size - 1)) * tail) / (1.0 + tail)
    drawn = inverse_cdf(weights.expand(len(u), -1), u)
    counts = drawn.bincount(minlength=size)[1:]
    misplaced = (counts - draws).abs().sum() / draws * tiny
    assert misplaced < 1e-6  # of a mass of 1; the tail has 8e-5
    assert (counts == 0).sum() < 20
    assert counts.max() < 2 * draws


@pytest.mark.parametrize("size", SIZES)
def test_the_extremes_give_the_first_and_last_token_that_have_weight(size: int) -> None:
    weights = torch.rand(1, size) + 0.1
    weights[0, : size // 3] = 0
    weights[0, size - size // 4 :] = 0
    first, last = size // 3, size - size // 4 - 1
    u = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)
    assert inverse_cdf(weights.expand(2, -1), u).tolist() == [first, last]


def test_no_token_of_weight_zero_is_ever_drawn() -> None:
    weights = torch.rand(2000, 500) * (torch.rand(2000, 500) < 0.02)
    weights[:, 250] += 1e-3
    drawn = inverse_cdf(weights, uniforms(torch.arange(2000), 1))
    assert (weights.gather(-1, drawn[:, None]) > 0).all()


def test_no_token_of_weight_zero_is_drawn_at_the_seam_of_two_blocks() -> None:
    weights = torch.zeros(500, 256)
    weights[:, 0] = 1.0
    weights[:, 200] = torch.rand(500) * 1e-9
    u = 1.0 / (1.0 + weights[:, 200].double())  # where token 0 ends, give or take a rounding
    drawn = inverse_cdf(weights, u)
    assert (weights.gather(-1, drawn[:, None]) > 0).all()


def test_a_target_that_rounding_puts_at_the_end_takes_the_last_index_with_weight() -> None:
    cumulative = torch.tensor([[0.0, 0.5, 2.0, 2.0, 2.0]], dtype=torch.float64)
    assert _first_above(cumulative, torch.tensor([[2.0]], dtype=torch.float64)).item() == 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_logprobs_are_those_of_the_tempered_softmax(temperature: float) -> None:
    logits = logits_of(300, rows=20)
    tokens, logprobs = draw_tokens(
        logits.clone(), uniforms(torch.arange(20), 0), Sampling(temperature=temperature)
    )
    exact = (logits.double() / temperature).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, **FP32)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(5, 1.0), (0, 0.7), (20, 0.5), (1, 0.1), (0, 1e-6), (500, 0.999)]
)
def test_truncation_and_logprobs_equal_the_sorted_reference(top_k: int, top_p: float) -> None:
    logits = logits_of(300, rows=10, spread=2.0)
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p)
    probs = torch.softmax(truncate_logits(logits.clone(), sampling), -1)
    wanted = [reference.distribution(row, 0.8, top_k, top_p) for row in logits.double().tolist()]
    torch.testing.assert_close(probs.double(), torch.tensor(wanted, dtype=torch.float64), **FP32)
    tokens, logprobs = draw_tokens(logits.clone(), uniforms(torch.arange(10), 0), sampling)
    exact = [math.log(row[token]) for row, token in zip(wanted, tokens.tolist(), strict=True)]
    torch.testing.assert_close(logprobs, torch.tensor(exact), **FP32)


def test_a_nucleus_larger_than_the_first_candidates_is_found_by_sorting_everything() -> None:
    logits = torch.randn(2, 5000) * 0.1
    kept = truncate_logits(logits.clone(), Sampling(top_p=0.9)).isfinite().sum(-1)
    theirs = TopPLogitsWarper(0.9)(torch.zeros(2, 1), logits.clone()).isfinite().sum(-1)
    assert kept.tolist() == theirs.tolist()
    assert (kept > 1024).all()


def test_truncation_keeps_the_tokens_that_transformers_keeps() -> None:
    logits = logits_of(2000, rows=8, spread=2.0)
    ours = truncate_logits(logits.clone(), Sampling(top_k=50, top_p=0.8)).isfinite()
    theirs = TopPLogitsWarper(0.8)(
        torch.zeros(8, 1), TopKLogitsWarper(50)(torch.zeros(8, 1), logits.clone())
    ).isfinite()
    assert torch.equal(ours, theirs)


def test_banned_tokens_are_never_drawn_and_the_rest_is_renormalised() -> None:
    logits = torch.zeros(1000, 10)
    tokens, logprobs = draw_tokens(
        logits, uniforms(torch.arange(1000), 0), Sampling(), torch.tensor([3, 7])
    )
    assert set(tokens.tolist()) == {0, 1, 2, 4, 5, 6, 8, 9}
    torch.testing.assert_close(logprobs, torch.full((1000,), -math.log(8)), **FP32)


def test_greedy_takes_the_likeliest_token_and_reports_it_at_temperature_one() -> None:
    logits = logits_of(300, rows=20)
    tokens, logprobs = draw_tokens(
        logits.clone(), torch.zeros(20, dtype=torch.float64), Sampling(temperature=0)
    )
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1), **FP32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens=0\): max_new_tokens must be at least 1"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, r"top_p=0.0\): .* in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, r"min_new_tokens=5\): .* max_new_tokens=4"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_only_the_whole_tempered_softmax_counts_as_not_truncated() -> None:
    assert not Sampling(temperature=0.5, stop_token_ids=[3]).truncated
    truncating = ({"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.9}, {"min_new_tokens": 1})
    assert all(Sampling(**options).truncated for options in truncating)  # type: ignore[arg-type]
