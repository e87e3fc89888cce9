"""Loss classes of the preference family: pairs, what each needs, logs and refuses; sums."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import functional as f
from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.types import SequenceStats
from tests.reference.preference_stats import PAIR_METRICS, concrete, stats
from tests.tolerances import FP64

POLICY, REFERENCE = stats(seed=1), stats(seed=2)
U = POLICY.logprobs - REFERENCE.logprobs
UW, UL = U.unbind(-1)
LW, LL = POLICY.logprobs.unbind(-1)
NW, NL = POLICY.lengths.unbind(-1)
P = torch.linspace(0, 1, 6, dtype=torch.float64)
KL, COLLISION = stats(seed=3).logprobs.abs(), stats(seed=4).logprobs
RICH = stats(seed=1, kl=KL, collision=COLLISION)

# The class with its defaults, and the function with the numbers that its docstring names as defaults.
PAIRWISE: dict[str, tuple[o.PairwiseLoss, Callable[[], Tensor]]] = {
    "DPO": (o.DPO(), lambda: f.dpo_loss(UW, UL, 0.1)),
    "ConservativeDPO": (o.ConservativeDPO(), lambda: f.conservative_dpo_loss(UW, UL, 0.1, 0.1)),
    "RobustDPO": (o.RobustDPO(), lambda: f.robust_dpo_loss(UW, UL, 0.1, 0.1)),
    "SoftLabelDPO": (o.SoftLabelDPO(), lambda: f.soft_label_dpo_loss(UW, UL, P, 0.1)),
    "LengthRegularizedDPO": (
        o.LengthRegularizedDPO(),
        lambda: f.length_regularized_dpo_loss(UW, UL, NW, NL, 0.1, 0.01),
    ),
    "LengthNormalizedDPO": (
        o.LengthNormalizedDPO(),
        lambda: f.length_normalized_dpo_loss(UW, UL, NW, NL, 5.0),
    ),
    "LengthDesensitizedDPO": (
        o.LengthDesensitizedDPO(),
        lambda: f.dpo_loss(*_desensitized(0.5), 0.1),
    ),
    "DPOP": (o.DPOP(), lambda: f.dpop_loss(UW, UL, 0.3, 50.0)),
    "RPO": (o.RPO(), lambda: f.rpo_loss(UW, UL, -LW / NW, 0.1, 1.0)),
    "SPIN": (o.SPIN(), lambda: f.dpo_loss(UW, UL, 0.1)),
    "ReverseKLDPO": (o.ReverseKLDPO(), lambda: f.dpo_loss(UW, UL, 0.1)),
    "ForwardKLDPO": (o.ForwardKLDPO(), lambda: f.dpo_loss(-(-UW).exp(), -(-UL).exp(), 0.1)),
    "JensenShannonDPO": (
        o.JensenShannonDPO(),
        lambda: f.dpo_loss(UW - UW.exp().log1p(), UL - UL.exp().log1p(), 0.1),
    ),
    "AlphaDivergenceDPO": (
        o.AlphaDivergenceDPO(),
        lambda: f.dpo_loss(-(-UW / 2).exp() / 0.5, -(-UL / 2).exp() / 0.5, 0.1),
    ),
    "IPO": (o.IPO(), lambda: f.ipo_loss(UW, UL, 0.1)),
    "MeanIPO": (o.MeanIPO(), lambda: f.ipo_mean_loss(UW, UL, NW, NL, 0.1)),
    "RSOHinge": (o.RSOHinge(), lambda: f.rso_hinge_loss(UW, UL, 0.05)),
    "ExponentialGPO": (o.ExponentialGPO(), lambda: f.gpo_exponential_loss(UW, UL, 0.1)),
    "SavageGPO": (o.SavageGPO(), lambda: f.gpo_savage_loss(UW, UL, 0.1)),
    "SquaredGPO": (o.SquaredGPO(), lambda: f.gpo_squared_loss(UW, UL, 0.1)),
    "EXO": (o.EXO(), lambda: f.exo_loss(UW, UL, 0.1, 1e-3)),
    "DiscoPOP": (o.DiscoPOP(), lambda: f.discopop_loss(UW, UL, 0.05, 0.05)),
    "SimPO": (o.SimPO(), lambda: f.simpo_loss(LW, LL, NW, NL, 2.0, 1.0)),
    "AlphaPO": (o.AlphaPO(), lambda: f.alphapo_loss(LW, LL, NW, NL, 2.0, 1.0, 0.25)),
    "CPO": (o.CPO(), lambda: f.cpo_loss(LW, LL, -LW / NW, 0.1, 1.0)),
    "ORPO": (o.ORPO(), lambda: f.orpo_loss(LW, LL, NW, NL, 0.1)),
    "SLiC": (o.SLiC(), lambda: f.slic_loss(LW, LL, -LW, 1.0, 0.1)),
    "NCAPair": (o.NCAPair(), lambda: f.nca_pair_loss(UW, UL, 0.01)),
    "BCOPair": (o.BCOPair(), lambda: f.bco_pair_loss(UW, UL, 0.01 * U.mean(), 0.01)),
    "APOZero": (o.APOZero(), lambda: f.apo_zero_loss(UW, UL, 0.1)),
    "APODown": (o.APODown(), lambda: f.apo_down_loss(UW, UL, 0.1)),
    "CalDPO": (o.CalDPO(), lambda: f.cal_dpo_loss(UW, UL, 1e-3)),
    "SPPO": (o.SPPO(), lambda: f.sppo_loss(UW, UL, P, 1e3)),
    "WPO": (
        o.WPO(),
        lambda: (
            f.on_policy_weight(LW, LL, *COLLISION.unbind(-1), NW, NL) * f.dpo_loss(UW, UL, 0.01)
        ),
    ),
    "TDPO1": (o.TDPO1(), lambda: f.tdpo_loss(UW, UL, *KL.unbind(-1), 0.1)),
    "TDPO2": (o.TDPO2(), lambda: f.tdpo2_loss(UW, UL, *KL.unbind(-1), 0.1, 0.5)),
    "AOT": (
        o.AOT(),
        lambda: f.aot_loss(LW - LL, REFERENCE.logprobs[:, 0] - REFERENCE.logprobs[:, 1], 0.01),
    ),
    "UnpairedAOT": (o.UnpairedAOT(), lambda: f.aot_unpaired_loss(UW, UL, 0.01)),
    "BetaDPO": (o.BetaDPO(drop=0.0), lambda: f.dpo_loss(UW, UL, 0.1)),
}


def _desensitized(alpha: float) -> tuple[Tensor, Tensor]:
    assert POLICY.token_logprobs is not None and REFERENCE.token_logprobs is not None
    difference = POLICY.token_logprobs - REFERENCE.token_logprobs
    shared = torch.arange(5) < torch.minimum(NW, NL)[:, None]
    chosen, rejected = (
        (d * torch.where(shared, 1.0, torch.tensor(alpha))).sum(-1) for d in difference.unbind(1)
    )
    return chosen, rejected


def test_the_table_has_every_pairwise_loss() -> None:
    assert concrete(o.PairwiseLoss) == set(PAIRWISE)


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairwise_losses_are_their_functions_with_documented_defaults(name: str) -> None:
    loss, expected = copy.deepcopy(PAIRWISE[name][0]), PAIRWISE[name][1]
    output = loss.train()(RICH, REFERENCE if loss.needs_reference else None, {"p_chosen": P})
    assert_close(output.loss, expected(), **FP64)
    assert set(output.metrics) == PAIR_METRICS
    assert not any(value.requires_grad for value in output.metrics.values())
    assert all(value.shape == (6,) for value in output.metrics.values())


@pytest.mark.parametrize("name", PAIRWISE)
def test_needs_of_the_reference_are_told(name: str) -> None:
    loss = copy.deepcopy(PAIRWISE[name][0])
    if loss.needs_reference:
        with pytest.raises(ConfigurationError, match="reference"):
            loss(RICH, None, {"p_chosen": P})
    for statistic in loss.statistics - {"tokens"}:
        with pytest.raises(ConfigurationError, match=statistic):
            loss(POLICY, REFERENCE, {})
    with pytest.raises(DataError, match="batch has 3"):
        loss(stats(3), stats(3), {"p_chosen": P})


def test_metrics_of_a_pair() -> None:
    policy = SequenceStats(
        torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.ones(2, 2, dtype=torch.int64)
    )
    reference = SequenceStats(
        torch.tensor([[-2.0, -2.0], [-2.0, -2.0]]), torch.ones(2, 2, dtype=torch.int64)
    )
    metrics = o.DPO(beta=0.5)(policy, reference, {}).metrics
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
    loss = copy.deepcopy(PAIRWISE[name][0])
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
    output = loss(policy, reference, {"p_chosen": P}).loss
    assert output.isfinite().all()
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output.sum(), policy.logprobs)
        assert gradient.isfinite().all()


def test_soft_labels_of_one_are_hard_labels() -> None:
    hard = o.DPO()(POLICY, REFERENCE, {}).loss
    assert_close(
        o.SoftLabelDPO()(POLICY, REFERENCE, {"p_chosen": torch.ones(6)}).loss, hard, **FP64
    )
    assert math.isclose(o.DPO()(POLICY, POLICY, {}).loss[0].item(), math.log(2))


# -- sums


def test_a_weighted_sum_is_a_loss() -> None:
    rpo, parts = o.RPO(alpha=0.3), o.WeightedSum([o.DPO(), o.NLL()], [1.0, 0.3])
    assert parts.needs_reference and parts.num_branches == 2 and not parts.needs_mismatched
    output = parts(POLICY, REFERENCE, {})
    assert_close(output.loss, rpo(POLICY, REFERENCE, {}).loss, **FP64)
    assert set(output.metrics) == PAIR_METRICS | {"nll_loss", "loss/DPO", "loss/NLL"}
    nested = o.WeightedSum([parts, o.TDPO2()], [0.5, 2.0])
    assert nested.statistics == {"kl"}
    expected = 0.5 * output.loss + 2 * o.TDPO2()(RICH, REFERENCE, {}).loss
    assert_close(nested(RICH, REFERENCE, {}).loss, expected, **FP64)
    assert not o.WeightedSum([o.SimPO(), o.NLL()]).needs_reference
