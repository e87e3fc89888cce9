"""Loss classes of single completions and lists, and what losses remember from batch to batch."""

import copy
import inspect
import math

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.objectives.preference import completions_of
from lit_rlhf.types import SequenceStats
from tests.reference.preference_stats import PAIR_METRICS, concrete, stats
from tests.tolerances import FP64

REFERENCE = stats(seed=2)
SCORES = torch.tensor([[1.0, 0.0, 2.0]])


# -- state ------------------------------------------------------------------------------------------------------------


def test_bco_pair_shift_is_a_running_mean_that_stands_still_in_evaluation() -> None:
    loss, first, second = o.BCOPair(beta=0.5).double().train(), stats(seed=5), stats(seed=6)
    rewards = [0.5 * (policy.logprobs - REFERENCE.logprobs) for policy in (first, second)]
    loss.of_batch(first, REFERENCE, {})
    assert_close(loss.shift.mean, rewards[0].mean(), **FP64)
    loss.of_batch(second, REFERENCE, {})
    assert_close(loss.shift.mean, torch.cat(rewards).mean(), **FP64)
    loss.eval().of_batch(first, REFERENCE, {})
    assert_close(loss.shift.mean, torch.cat(rewards).mean(), **FP64)
    restored = o.BCOPair(beta=0.5).double()
    restored.load_state_dict(loss.state_dict())
    assert_close(restored.shift.mean, loss.shift.mean)
    assert_close(restored.shift.count, loss.shift.count)


def test_bco_learns_its_shift_or_averages_it() -> None:
    batch, policy, reference = (
        {"label": torch.tensor([True, False, True, False, True, False])},
        stats(1),
        stats(1, seed=2),
    )
    learned, averaged = o.BCO(learn_shift=True), o.BCO()
    learned.of_batch(policy, reference, batch).loss.sum().backward()
    assert learned.shift.grad is not None and learned.shift.grad.abs() > 0
    assert not list(averaged.parameters())
    averaged.train().of_batch(policy, reference, batch)
    assert_close(
        averaged.running.mean, 0.01 * (policy.logprobs - reference.logprobs).mean(), **FP64
    )


def test_beta_dpo_keeps_a_share_and_follows_the_gap() -> None:
    rows = 200
    policy, reference = stats(rows=rows, seed=1), stats(rows=rows, seed=2)
    loss = o.BetaDPO(beta=0.1, alpha=0.6, drop=0.25, momentum=0.5).double().train()
    output = loss.of_batch(policy, reference, {}).loss
    assert (output > 0).sum() == 150
    gaps = (policy.logprobs - reference.logprobs) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert_close(loss.moments.mean, gaps.mean(), **FP64)
    assert_close(loss.moments.std, gaps.std(unbiased=False), **FP64)
    kept = output > 0
    beta = 0.1 * (1 + 0.6 * (gaps[kept].mean() - gaps.mean()))
    assert_close(output[kept], -logsigmoid(beta * gaps)[kept] / 0.75, **FP64)
    # Rows far from the mean are dropped more often.
    far = (gaps - gaps.mean()).abs()
    assert far[~kept].mean() > far[kept].mean()
    state = loss.state_dict()
    again, other = (
        loss.of_batch(policy, reference, {}).loss,
        o.BetaDPO(drop=0.25, momentum=0.5).double().train(),
    )
    assert not torch.equal(again > 0, kept)  # another draw for the next batch
    other.load_state_dict(state)
    assert torch.equal(
        other.of_batch(policy, reference, {}).loss, again
    )  # and the same after a restart
    assert (loss.eval().of_batch(policy, reference, {}).loss > 0).all()
    assert loss.moments.count == 2


def test_beta_dpo_draws_pairs_by_their_weights() -> None:
    """Half the gaps lie at the mean (weight 1), half sqrt(2) deviations off it (weight 1/e); few are drawn of many."""
    u = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=torch.float64).repeat(20_000)[:, None]
    ratios = torch.cat([u, torch.zeros_like(u)], -1)
    lengths = torch.ones_like(ratios, dtype=torch.int64)
    policy, reference = SequenceStats(ratios, lengths), SequenceStats(0 * ratios, lengths)
    loss = o.BetaDPO(drop=0.98).double().train()
    kept = loss.of_batch(policy, reference, {}).loss > 0
    off = u[:, 0] != 0
    assert kept.sum() == 1600
    assert (kept & off).sum() / (kept & ~off).sum() == pytest.approx(math.exp(-1), rel=0.1)


# -- single completions -----------------------------------------------------------------------------------------------

LABELS = torch.tensor([True, False, True, False, True, False])
RATINGS, VALUES = (
    torch.linspace(-1, 1, 6, dtype=torch.float64),
    torch.linspace(0, 2, 6, dtype=torch.float64),
)

POINTWISE = {name: getattr(o, name)() for name in sorted(concrete(o.PointwiseLoss))}


@pytest.mark.parametrize("name", POINTWISE)
def test_a_batch_is_its_first_branch_and_maybe_a_mismatched_one(name: str) -> None:
    loss, twin = copy.deepcopy(POINTWISE[name]).train(), copy.deepcopy(POINTWISE[name]).train()
    policy, reference = stats(2, seed=5, value=VALUES), stats(2, seed=6)
    columns = {"label": LABELS, "score": RATINGS}
    output = loss.of_batch(policy, reference, columns)
    completions = completions_of(policy, reference)
    sides = [completions.branch(0), completions.branch(1)][: 2 if loss.needs_mismatched else 1]
    expected = twin(*sides, **{n: column for n, column in columns.items() if n in loss.columns})
    assert_close(output.loss, expected, **FP64)
    logged = {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"}
    assert logged <= set(output.metrics)
    assert all(value.shape == (6,) for value in output.metrics.values())


def _mismatched(rows: int = 4) -> tuple[SequenceStats, SequenceStats]:
    return stats(2, rows=rows, seed=1), stats(2, rows=rows, seed=2)


def test_kto_reference_point_is_that_of_the_mismatched_completions() -> None:
    policy, reference = _mismatched()
    labels = torch.tensor([True, False, False, True])
    output = o.KTO(beta=0.3).of_batch(policy, reference, {"label": labels})
    u = policy.logprobs - reference.logprobs
    point = u[:, 1].mean().clamp_min(0)
    z = 0.3 * (u[:, 0] - point)
    assert_close(output.loss, torch.where(labels, -z, z).sigmoid(), **FP64)
    assert_close(output.metrics["kl"], point.expand(4), **FP64)
    assert output.metrics["rewards/chosen"].isnan().tolist() == (~labels).tolist()
    assert output.metrics["rewards/rejected"].isnan().tolist() == labels.tolist()


def test_kto_weighs_a_mismatched_completion_as_its_own_row() -> None:
    policy, reference = _mismatched()
    weight = torch.tensor([1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    batch = {"label": torch.ones(4, dtype=torch.bool), "weight": weight}
    u = (policy.logprobs - reference.logprobs)[:, 1]  # row i holds the completion of row i + 1
    expected = ((u[3] * 1.0 + u[1] * 3.0) / 4).clamp_min(0)
    assert_close(o.KTO().of_batch(policy, reference, batch).metrics["kl"][0], expected, **FP64)


@pytest.mark.parametrize("label", [True, False])
def test_kto_of_one_class_or_one_row_is_finite(label: bool) -> None:
    policy, reference = _mismatched()
    assert (
        o.KTO()
        .of_batch(policy, reference, {"label": torch.full((4,), label)})
        .loss.isfinite()
        .all()
    )
    alone = o.KTO().of_batch(*_mismatched(1), {"label": torch.tensor([label])})
    assert alone.metrics["kl"].item() == 0.0


def test_kto_without_mismatched_completions_says_who_adds_them() -> None:
    with pytest.raises(ConfigurationError, match="PreferenceModule"):
        o.KTO().of_batch(stats(1), stats(1, seed=2), {"label": torch.ones(6, dtype=torch.bool)})


def test_dro_v_regresses_on_scores_and_values() -> None:
    value, score = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    policy, reference = stats(1, value=value), stats(1, seed=2)
    output = o.DROV(tau=0.7).of_batch(policy, reference, {"score": score})
    u = (policy.logprobs - reference.logprobs)[:, 0]
    assert_close(output.loss, (score - value - 0.7 * u) ** 2 / 2, **FP64)
    with pytest.raises(ConfigurationError, match="critic"):
        o.DROV().of_batch(stats(1), reference, {"score": score})


def test_npo_and_nll_split_labelled_data() -> None:
    policy, reference = stats(1), stats(1, seed=2)
    labels = torch.tensor([True, False, True, False, True, False])
    npo, nll = (
        o.NPO().of_batch(policy, reference, {"label": labels}).loss,
        o.NLL().of_batch(policy, None, {"label": labels}).loss,
    )
    assert (npo[labels] == 0).all()
    assert (nll[~labels] == 0).all()
    assert_close(o.NPO().of_batch(policy, reference, {}).loss[~labels], npo[~labels])
    total = (
        o.WeightedSum([o.NPO(), o.NLL()], [1.0, 0.5])
        .of_batch(policy, reference, {"label": labels})
        .loss
    )
    assert_close(total, npo + 0.5 * nll, **FP64)


def test_nll_takes_the_best_of_a_list_and_the_chosen_of_a_pair() -> None:
    policy, batch = (
        stats(3, rows=1),
        {"score": SCORES, "branch_mask": torch.tensor([[True, True, False]])},
    )
    assert_close(
        o.NLL().of_batch(policy, None, {"score": SCORES}).loss,
        -(policy.logprobs / policy.lengths)[:, 2],
        **FP64,
    )
    assert_close(
        o.NLL(length_normalize=False).of_batch(policy, None, batch).loss,
        -policy.logprobs[:, 0],
        **FP64,
    )
    assert_close(
        o.NLL().of_batch(policy, None, {}).loss, -(policy.logprobs / policy.lengths)[:, 0], **FP64
    )


# -- sums and lists ---------------------------------------------------------------------------------------------------


LISTWISE = {name: getattr(o, name)() for name in sorted(concrete(o.ListwiseLoss))}


@pytest.mark.parametrize("name", LISTWISE)
def test_a_batch_is_its_branches_that_exist(name: str) -> None:
    loss, policy, reference = LISTWISE[name], stats(4, seed=1), stats(4, seed=2)
    scores = torch.randn(6, 4, dtype=torch.float64)
    full = [True] * 4
    holes = [[True, False, True, True], full, [False, True, False, False], full, [False] * 4]
    mask = torch.tensor([full, *holes])
    given = reference if loss.needs_reference else None
    output = loss.of_batch(policy, given, {"score": scores, "branch_mask": mask})
    expected = loss(completions_of(policy, reference), scores.masked_fill(~mask, 7.0), mask)
    assert_close(output.loss, expected, **FP64)
    assert set(output.metrics) == PAIR_METRICS
    unranked = [False, False, False, True, False, True]
    assert output.metrics["rewards/margins"].isnan().tolist() == unranked


def test_listwise_metrics() -> None:
    policy = SequenceStats(torch.tensor([[-1.0, -1.5, -5.0]]), torch.ones(1, 3, dtype=torch.int64))
    reference = SequenceStats(
        torch.tensor([[-2.0, -2.0, -3.0]]), torch.ones(1, 3, dtype=torch.int64)
    )
    metrics = (
        o.PlackettLuceDPO(beta=1.0)
        .of_batch(policy, reference, {"score": torch.tensor([[0.0, 2.0, 1.0]])})
        .metrics
    )
    # Rewards are 1, 0.5, -2 and the second is the best.
    assert metrics["rewards/chosen"].item() == 0.5
    assert metrics["rewards/rejected"].item() == -0.5
    assert metrics["rewards/margins"].item() == 1.0
    assert metrics["rewards/accuracies"].item() == pytest.approx(
        1 / 3
    )  # of 2 > 3, 2 > 1, 3 > 1 the first alone holds
    assert metrics["logps/chosen"].item() == -1.5
    assert metrics["logps/rejected"].item() == -3.0


def test_a_list_without_tokens_does_not_exist() -> None:
    policy, reference = stats(2, seed=1), stats(2, seed=2)
    empty = SequenceStats(
        policy.logprobs * torch.tensor([1.0, 0.0]), policy.lengths * torch.tensor([1, 0])
    )
    output = o.PlackettLuceDPO().of_batch(empty, reference, {"score": torch.randn(6, 2)})
    assert (output.loss == 0).all()


def test_every_loss_is_of_a_kind() -> None:
    kinds = concrete(o.PairwiseLoss) | set(LISTWISE) | set(POINTWISE)
    assert concrete(o.PreferenceLoss) - kinds == {"WeightedSum", "NLL"}


@pytest.mark.parametrize("name", sorted(concrete(o.PreferenceLoss) - {"WeightedSum", "NLL"}))
def test_docstrings_give_equation_paper_and_defaults(name: str) -> None:
    text = inspect.getdoc(getattr(o, name)) or ""
    inherited = " ".join(inspect.getdoc(base) or "" for base in getattr(o, name).__mro__[1:3])
    assert "$" in text
    cited = "arXiv:" in text + inherited or "note" in text or name in ("SoftLabelDPO", "MeanIPO")
    assert cited, f"{name} cites nothing"
    for option in inspect.signature(getattr(o, name)).parameters:
        assert f"{option}:" in text + inherited, f"{name} does not document {option}"
