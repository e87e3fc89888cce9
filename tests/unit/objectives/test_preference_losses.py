"""Loss classes of the preference family: pairs, what each needs, logs and refuses; sums."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.objectives.preference import completions_of
from lit_rlhf.types import SequenceStats
from tests.reference.preference_stats import PAIR_METRICS, concrete, stats
from tests.tolerances import FP64

POLICY, REFERENCE = stats(seed=1), stats(seed=2)
P = torch.linspace(0, 1, 6, dtype=torch.float64)
KL, COLLISION = stats(seed=3).logprobs.abs(), stats(seed=4).logprobs
RICH = stats(seed=1, kl=KL, collision=COLLISION)

PAIRWISE = {name: getattr(o, name)() for name in sorted(concrete(o.PairwiseLoss))}


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_batch_is_its_first_and_second_branch(name: str) -> None:
    loss, twin = copy.deepcopy(PAIRWISE[name]).train(), copy.deepcopy(PAIRWISE[name]).train()
    output = loss.of_batch(RICH, REFERENCE if loss.needs_reference else None, {"p_chosen": P})
    completions = completions_of(RICH, REFERENCE)
    columns = {"p_chosen": P} if "p_chosen" in loss.columns else {}
    expected = twin(completions.branch(0), completions.branch(1), **columns)
    assert_close(output.loss, expected, **FP64)
    assert set(output.metrics) == PAIR_METRICS
    assert not any(value.requires_grad for value in output.metrics.values())
    assert all(value.shape == (6,) for value in output.metrics.values())


@pytest.mark.parametrize("name", PAIRWISE)
def test_needs_of_the_reference_are_told(name: str) -> None:
    loss = copy.deepcopy(PAIRWISE[name])
    if loss.needs_reference:
        with pytest.raises(ConfigurationError, match="reference"):
            loss.of_batch(RICH, None, {"p_chosen": P})
    for statistic in loss.statistics - {"tokens"}:
        with pytest.raises(ConfigurationError, match=statistic):
            loss.of_batch(POLICY, REFERENCE, {})
    with pytest.raises(DataError, match="batch has 3"):
        loss.of_batch(stats(3), stats(3), {"p_chosen": P})


@pytest.mark.parametrize("loss", [o.DPO(), o.SPPO(), o.ForwardKLDPO()])
def test_what_differs_by_rounding_is_no_preference(loss: o.PairwiseLoss) -> None:
    logprobs = torch.tensor([[-50.0, -60.0], [-50.0, -60.0]])
    lengths = torch.full((2, 2), 9)
    ulp = torch.tensor([[50.0, 0.0], [0.01, 0.0]]) * torch.tensor([[2e-7], [1.0]])
    metrics = loss.of_batch(
        SequenceStats(logprobs + ulp, lengths), SequenceStats(logprobs, lengths), {}
    ).metrics
    assert (metrics["rewards/margins"] > 0).all()
    assert metrics["rewards/accuracies"].tolist() == [0.0, 1.0]


def test_metrics_of_a_pair() -> None:
    policy = SequenceStats(
        torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.ones(2, 2, dtype=torch.int64)
    )
    reference = SequenceStats(
        torch.tensor([[-2.0, -2.0], [-2.0, -2.0]]), torch.ones(2, 2, dtype=torch.int64)
    )
    metrics = o.DPO(beta=0.5).of_batch(policy, reference, {}).metrics
    assert_close(metrics["rewards/chosen"], torch.tensor([0.5, -0.5]))
    assert_close(metrics["rewards/rejected"], torch.tensor([0.0, 0.5]))
    assert_close(metrics["rewards/margins"], torch.tensor([0.5, -1.0]))
    assert_close(metrics["rewards/accuracies"], torch.tensor([1.0, 0.0]))
    assert_close(metrics["logps/chosen"], torch.tensor([-1.0, -3.0]))
    assert_close(metrics["logps/rejected"], torch.tensor([-2.0, -1.0]))


# -- bad input --------------------------------------------------------------------------------------------------------


BAD_OPTIONS: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (o.DPO, {"beta": 0.0}, "beta=0.0"),
    (o.DPO, {"beta": float("nan")}, "beta=nan"),
    (o.ConservativeDPO, {"label_smoothing": 0.5}, r"label_smoothing.*\[0, 0.5\)"),
    (o.ConservativeDPO, {"label_smoothing": -0.1}, "label_smoothing"),
    (o.RobustDPO, {"label_smoothing": 0.5}, "label_smoothing"),
    (o.EXO, {"label_smoothing": 0.0}, r"label_smoothing.*\(0, 0.5\)"),
    (o.AlphaDivergenceDPO, {"alpha": 1.0}, "alpha"),
    (o.LengthDesensitizedDPO, {"alpha": 1.5}, "alpha"),
    (o.DPOP, {"penalty": -1.0}, "penalty"),
    (o.DiscoPOP, {"temperature": 1.0}, "temperature"),
    (o.IPO, {"tau": -1.0}, "tau=-1.0"),
    (o.RSOHinge, {"gamma": 0.0}, "gamma"),
    (o.SPIN, {"scale": 0.0}, "scale"),
    (o.CPO, {"alpha": -1.0}, "alpha"),
    (o.ORPO, {"weight": 0.0}, "weight"),
    (o.SLiC, {"margin": 0.0}, "margin"),
    (o.BetaDPO, {"drop": 1.0}, "drop"),
    (o.KTO, {"desirable_weight": 0.0}, "desirable_weight"),
    (o.DROV, {"tau": 0.0}, "tau"),
    (o.InfoNCA, {"temperature": 0.0}, "temperature"),
    (o.PRO, {"sft_weight": -1.0}, "sft_weight"),
    (o.WeightedSum, {"losses": []}, "0 losses"),
    (o.WeightedSum, {"losses": [o.DPO()], "weights": [1.0, 2.0]}, "1 losses and 2 weights"),
    (o.WeightedSum, {"losses": [o.DPO(), o.KTO()]}, "one K"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD_OPTIONS)
def test_options_out_of_range_are_refused(
    make: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**options)


SCORES = torch.tensor([[1.0, 0.0, 2.0]])
BAD_BATCHES: list[tuple[o.PreferenceLoss, Mapping[str, Tensor], str]] = [
    (o.SoftLabelDPO(), {}, "p_chosen"),
    (o.SoftLabelDPO(), {"p_chosen": torch.tensor([0.5, 1.2])}, r"p_chosen=1.2.*row 1 of the batch"),
    (
        o.SoftLabelDPO(),
        {"p_chosen": torch.tensor([-0.1]), "index": torch.tensor([17])},
        "row 17 of the data",
    ),
    (o.SoftLabelDPO(), {"p_chosen": torch.tensor([float("nan")])}, "no probability"),
    (o.SPPO(), {"p_chosen": torch.tensor([2.0])}, "no probability"),
    (o.KTO(), {}, "label"),
    (o.DROV(), {}, "score"),
    (o.DROV(), {"score": torch.tensor([0.0, float("inf")])}, "not finite"),
    (o.PlackettLuceDPO(), {}, "score"),
    (o.PlackettLuceDPO(), {"score": torch.zeros(4, 1)}, "ranks the completions"),
    (o.PlackettLuceDPO(), {"score": torch.zeros(4)}, "ranks the completions"),
    (o.InfoNCA(), {"score": torch.tensor([[1.0, float("nan")]])}, "completion 1"),
    (o.WeightedSum([o.SoftLabelDPO(), o.NLL()]), {}, "p_chosen"),
    (
        o.DPO(),
        {"score": SCORES[:, :2]},
        "DPO takes the first .*PreferenceDataModule.*PlackettLuceDPO",
    ),
    (o.AOT(), {"score": SCORES[:, :2]}, "AOT takes the first completion"),
    (o.WeightedSum([o.CPO(), o.NLL()]), {"score": SCORES[:, :2]}, "CPO takes the first completion"),
]


@pytest.mark.parametrize(("loss", "batch", "message"), BAD_BATCHES)
def test_bad_columns_are_refused(
    loss: o.PreferenceLoss, batch: Mapping[str, Tensor], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loss.check(batch)


def test_good_columns_pass() -> None:
    o.SoftLabelDPO().check({"p_chosen": torch.tensor([0.0, 1.0])})
    missing = {
        "score": torch.tensor([[1.0, float("nan")]]),
        "branch_mask": torch.tensor([[True, False]]),
    }
    o.InfoNCA().check(missing)
    o.SPPO().check({})
    o.SoftLabelDPO().check({"p_chosen": torch.empty(3, device="meta")})


def test_sorted_losses_refuse_weights() -> None:
    with pytest.raises(ConfigurationError, match="weight"):
        o.AOT().check({"weight": torch.ones(2)})


@pytest.mark.parametrize("name", PAIRWISE)
def test_an_empty_branch_is_a_completion_of_probability_one(name: str) -> None:
    """All masked: log-prob 0, length 0. The loss is finite."""
    loss = copy.deepcopy(PAIRWISE[name])
    empty = torch.zeros(6, 2, dtype=torch.float64)
    policy = o.PreferenceStats(
        empty.clone().requires_grad_(),
        empty.long(),
        empty[..., None],
        empty[..., None].bool(),
        empty,
        empty,
    )
    reference = SequenceStats(empty, empty.long(), empty[..., None], empty[..., None].bool())
    output = loss.of_batch(policy, reference, {"p_chosen": P}).loss
    assert output.isfinite().all()
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output.sum(), policy.logprobs)
        assert gradient.isfinite().all()


def test_soft_labels_of_one_are_hard_labels() -> None:
    hard = o.DPO().of_batch(POLICY, REFERENCE, {}).loss
    assert_close(
        o.SoftLabelDPO().of_batch(POLICY, REFERENCE, {"p_chosen": torch.ones(6)}).loss, hard, **FP64
    )
    assert math.isclose(o.DPO().of_batch(POLICY, POLICY, {}).loss[0].item(), math.log(2))


# -- sums


def test_a_weighted_sum_is_a_loss() -> None:
    rpo, parts = o.RPO(alpha=0.3), o.WeightedSum([o.DPO(), o.NLL()], [1.0, 0.3])
    assert parts.needs_reference and parts.num_branches == 2 and not parts.needs_mismatched
    output = parts.of_batch(POLICY, REFERENCE, {})
    assert_close(output.loss, rpo.of_batch(POLICY, REFERENCE, {}).loss, **FP64)
    assert set(output.metrics) == PAIR_METRICS | {"nll_loss", "loss/DPO", "loss/NLL"}
    nested = o.WeightedSum([parts, o.TDPO2()], [0.5, 2.0])
    assert nested.statistics == {"kl"}
    expected = 0.5 * output.loss + 2 * o.TDPO2().of_batch(RICH, REFERENCE, {}).loss
    assert_close(nested.of_batch(RICH, REFERENCE, {}).loss, expected, **FP64)
    assert not o.WeightedSum([o.SimPO(), o.NLL()]).needs_reference


def test_a_weighted_sum_of_losses_of_pairs_is_a_formula_too() -> None:
    both, pair = o.WeightedSum([o.DPO(), o.CPO()], [1.0, 0.5]), completions_of(POLICY, REFERENCE)
    chosen, rejected = pair.branch(0), pair.branch(1)
    expected = o.DPO()(chosen, rejected) + 0.5 * o.CPO()(chosen, rejected)
    assert_close(both(chosen, rejected), expected, **FP64)
