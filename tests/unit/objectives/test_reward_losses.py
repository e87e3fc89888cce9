"""The classes of reward losses: which columns they read, metrics, what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.objectives import (
    AllPairs,
    BradleyTerry,
    GatedAttributes,
    GaussianRegression,
    HeadEnsemble,
    LengthDebiased,
    Outcome,
    PlackettLuce,
    Process,
    Regression,
    RewardLoss,
    RewardLossSum,
    ScaledBradleyTerry,
)
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP32

PAIRS = torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.3, 0.3]])
CHOSEN, REJECTED = PAIRS.unbind(-1)
MARGIN, P = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.9, 0.2, 0.5])
BRANCHES = ragged_mask((3, 2, 0))
SCORES, RATINGS = (
    ragged(BRANCHES, dtype=torch.float32),
    ragged(BRANCHES, seed=1, dtype=torch.float32),
)
LIST_BATCH = {"score": RATINGS, "branch_mask": BRANCHES}


@pytest.mark.parametrize(
    "columns", [{}, {"margin": MARGIN}, {"p_chosen": P}, {"margin": MARGIN, "p_chosen": P}]
)
def test_bradley_terry_takes_margins_and_soft_labels_where_there_are_such(
    columns: dict[str, Tensor],
) -> None:
    got = BradleyTerry().of_batch(PAIRS, columns).loss
    expected = BradleyTerry()(CHOSEN, REJECTED, **columns)
    assert_close(got, expected, **FP32)
    if columns:
        assert (got - BradleyTerry().of_batch(PAIRS, {}).loss).abs().max() > 0.1


def test_smoothing_and_centering_reach_the_formula() -> None:
    smoothed = BradleyTerry(label_smoothing=0.1).of_batch(PAIRS, {}).loss
    assert_close(smoothed, BradleyTerry(0.1)(CHOSEN, REJECTED), **FP32)
    centred = BradleyTerry(center_coefficient=0.01).of_batch(PAIRS, {}).loss
    assert_close(
        centred, BradleyTerry()(CHOSEN, REJECTED) + 0.01 * (CHOSEN + REJECTED) ** 2, **FP32
    )


def test_pair_metrics() -> None:
    metrics = BradleyTerry().of_batch(PAIRS.clone().requires_grad_(), {}).metrics
    assert metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]  # a tie is no hit
    assert_close(metrics["margin"], torch.tensor([0.5, -2.5, 0.0]), **FP32)
    assert_close(metrics["mean_reward"], torch.tensor([0.75, 0.75, 0.3]), **FP32)
    assert not any(value.requires_grad for value in metrics.values())
    soft = BradleyTerry().of_batch(PAIRS, {"p_chosen": P}).metrics["accuracy"]
    assert_close(soft, torch.tensor([0.9, 0.8, 0.0]), **FP32)


def test_scaled_bradley_terry_weighs_by_the_margin() -> None:
    got = ScaledBradleyTerry(label_smoothing=0.1).of_batch(PAIRS, {"margin": MARGIN}).loss
    assert_close(got, ScaledBradleyTerry(0.1)(CHOSEN, REJECTED, margin=MARGIN), **FP32)


@pytest.mark.parametrize(
    "loss",
    [AllPairs(), AllPairs(temperature=0.8), PlackettLuce(), PlackettLuce(top=1), Regression()],
)
def test_rankings_use_scores_and_branch_mask(loss: Any) -> None:
    output = loss.of_batch(SCORES, LIST_BATCH)
    assert_close(output.loss, loss(SCORES, RATINGS, BRANCHES), **FP32)
    assert output.loss.shape == (3,)
    full = {"score": RATINGS[:1]}
    assert_close(loss.of_batch(SCORES[:1], full).loss, output.loss[:1], **FP32)


def test_lists_without_a_pair_have_no_accuracy() -> None:
    accuracy = AllPairs().of_batch(SCORES, LIST_BATCH).metrics["accuracy"]
    assert accuracy.isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("loss", [AllPairs(), PlackettLuce()])
def test_a_pair_without_scores_is_chosen_over_rejected(loss: RewardLoss) -> None:
    output = loss.of_batch(PAIRS, {})
    assert_close(output.loss, BradleyTerry()(CHOSEN, REJECTED), **FP32)
    assert output.metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]


def test_outcome_and_single_ratings() -> None:
    logits, labels = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([True, True, False])
    output = Outcome().of_batch(logits, {"label": labels})
    assert_close(output.loss, Outcome()(logits[:, 0], labels.float()), **FP32)
    assert output.metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]
    ratings = torch.tensor([1.0, -1.0, 0.0])
    assert_close(
        Regression().of_batch(logits, {"score": ratings}).loss,
        torch.tensor([1.0, 0.0, 0.25]),
        **FP32,
    )


def test_a_weighted_sum_of_losses_is_a_loss() -> None:
    both = RewardLossSum([BradleyTerry(), ScaledBradleyTerry()], [1.0, 0.5])
    got = both.of_batch(PAIRS, {"margin": MARGIN})
    expected = (
        BradleyTerry().of_batch(PAIRS, {"margin": MARGIN}).loss
        + 0.5 * ScaledBradleyTerry().of_batch(PAIRS, {"margin": MARGIN}).loss
    )
    assert_close(got.loss, expected, **FP32)
    assert set(got.metrics) == {"accuracy", "margin", "mean_reward"}
    assert_close(
        RewardLossSum([BradleyTerry()]).of_batch(PAIRS, {}).loss,
        BradleyTerry().of_batch(PAIRS, {}).loss,
        **FP32,
    )


# -- several heads, and steps ------------------------------------------------------------------------------------------


def test_accuracy_of_a_solution_is_the_share_of_its_labelled_steps() -> None:
    logits = torch.tensor([[2.0, -1.0, 3.0], [1.0, 1.0, -9.0], [1.0, 1.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.2, 1.0], [1.0, 1.0, 1.0]])
    mask = ragged_mask((3, 2, 0))
    output = Process().of_batch(logits, {"step_label": labels, "step_mask": mask})
    assert_close(output.loss, Process()(logits, labels, mask), **FP32)
    expected = torch.tensor([2 / 3, 1 / 2, torch.nan])
    assert_close(output.metrics["accuracy"], expected, equal_nan=True, **FP32)


def test_the_deviation_that_is_logged_is_the_mean_over_what_was_rated() -> None:
    log_stds = torch.tensor([[1.0, 2.0, 6.0], [3.0, 5.0, 7.0], [1.0, 1.0, 1.0]]).log()
    scores = torch.stack([torch.where(BRANCHES, SCORES, 0.0), log_stds], -1)
    output = GaussianRegression().of_batch(scores, LIST_BATCH)
    assert_close(
        output.loss, GaussianRegression()(scores[..., 0], log_stds, RATINGS, BRANCHES), **FP32
    )
    expected = torch.tensor([3.0, 4.0, torch.nan])  # nothing of the third was rated
    assert_close(output.metrics["std"], expected, equal_nan=True, **FP32)


def test_lengths_are_the_tokens_of_the_two_completions() -> None:
    """The prompt is branch 0, padding -1."""
    ids = [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, -1, -1], [0, 0, 0, 1, 2, 2]]
    scores = torch.stack([PAIRS, PAIRS.flip(-1).square()], -1)
    got = LengthDebiased(0.5).of_batch(scores, {"branch_ids": torch.tensor(ids)})
    lengths = torch.tensor([[3, 1], [1, 2], [1, 2]])
    assert_close(got.loss, LengthDebiased(0.5)(*scores.unbind(-1), lengths), **FP32)
    assert got.metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]  # of the quality head alone


def test_members_differ_by_draw_and_by_rows() -> None:
    loss = HeadEnsemble(members=3, seed=1)
    batch = {"index": torch.arange(400)}
    weights = loss._weights(batch["index"])
    assert set(weights.unique().tolist()) == {0.0, 2.0}
    assert_close(weights.mean(1), torch.ones(3), rtol=0.15, atol=0.0)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[:, :5], loss._weights(batch["index"][:5]))
    scores = torch.randn(400, 2, 3)
    member = torch.stack([loss.loss.of_batch(scores[..., m], batch).loss for m in range(3)])
    assert_close(loss.of_batch(scores, batch).loss, (weights * member).mean(0), **FP32)
    assert_close(
        HeadEnsemble(members=3, bootstrap=False).of_batch(scores, {}).loss, member.mean(0), **FP32
    )
    with pytest.raises(DataError, match="HeadEnsemble needs the column 'index'"):
        loss.of_batch(scores, {})


def test_the_exported_head_scores_as_the_mean_of_the_members() -> None:
    loss, hidden = HeadEnsemble(members=3), torch.randn(4, 2, 5)
    heads = [torch.randn(5) for _ in range(3)]
    expected = (hidden @ heads[0] + hidden @ heads[1] + hidden @ heads[2]) / 3
    assert_close(loss.reward(torch.stack([hidden @ head for head in heads], -1)), expected, **FP32)
    assert_close(hidden @ loss.exported_weight(torch.stack(heads)), expected, **FP32)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [BradleyTerry(), ScaledBradleyTerry()])
def test_pair_losses_refuse_lists(loss: RewardLoss) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"chosen and a rejected completion, but these rows have 3.*AllPairs",
    ):
        loss.of_batch(SCORES, LIST_BATCH | {"margin": MARGIN})


@pytest.mark.parametrize(
    ("loss", "heads"), [(BradleyTerry(), 0), (LengthDebiased(), 2), (GatedAttributes(2), 4)]
)
def test_pair_losses_refuse_rankings_of_two(loss: RewardLoss, heads: int) -> None:
    """Rankings come in any order: the first completion needn't be the better one."""
    scores = PAIRS[..., None].expand(-1, -1, heads) if heads else PAIRS
    with pytest.raises(DataError, match=r"takes the first .*PreferenceDataModule.*AllPairs"):
        loss.of_batch(scores, {"score": torch.tensor([[0.0, 1.0]] * 3)})


def test_a_strength_below_zero_is_refused() -> None:
    """Its loss would have no least value."""
    batch = {"margin": torch.tensor([1.0, -2.0, 0.0]), "index": torch.tensor([4, 7, 5])}
    with pytest.raises(DataError, match=r"margin=-2\.0 .*\(1 of 3 .*row 7 .*0 or more.*swap"):
        ScaledBradleyTerry().of_batch(PAIRS, batch)


@pytest.mark.parametrize("loss", [AllPairs(), PlackettLuce()])
def test_losses_of_rankings_refuse_single_completions(loss: RewardLoss) -> None:
    with pytest.raises(DataError, match=r"ranks .* rows have one each.*Regression"):
        loss.of_batch(PAIRS[:, :1], {"score": torch.ones(3)})


@pytest.mark.parametrize(
    ("loss", "scores", "column"),
    [
        (ScaledBradleyTerry(), PAIRS, "margin"),
        (AllPairs(), SCORES, "score"),
        (PlackettLuce(), SCORES, "score"),
        (Regression(), PAIRS, "score"),
        (Outcome(), PAIRS[:, :1], "label"),
    ],
)
def test_a_missing_column_is_named(loss: RewardLoss, scores: Tensor, column: str) -> None:
    message = rf"{type(loss).__name__} needs the column '{column}', which the batches lack \(they hold \['index'\]\)"
    with pytest.raises(DataError, match=message):
        loss.of_batch(scores, {"index": torch.arange(3)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BradleyTerry(label_smoothing=0.5),
            r"BradleyTerry\(label_smoothing=0.5\).*must be in \[0, 0.5\)",
        ),
        (lambda: BradleyTerry(label_smoothing=-0.1), r"label_smoothing=-0.1"),
        (lambda: BradleyTerry(center_coefficient=-1.0), r"center_coefficient must be 0 or more"),
        (
            lambda: ScaledBradleyTerry(label_smoothing=0.7),
            r"ScaledBradleyTerry\(label_smoothing=0.7\)",
        ),
        (
            lambda: AllPairs(temperature=0.0),
            r"AllPairs\(temperature=0.0\): temperature must be above 0, or None",
        ),
        (lambda: PlackettLuce(top=0), r"PlackettLuce\(top=0\): top must be 1 or more"),
        (lambda: RewardLossSum([]), r"losses must be one or more"),
        (
            lambda: RewardLossSum([BradleyTerry()], [1.0, 2.0]),
            r"weights must be as many as losses \(1\)",
        ),
        (
            lambda: Outcome().of_batch(PAIRS, {"label": P}),
            r"Outcome judges one completion a row; these rows have 2 branches",
        ),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigurationError, match=message):
        make()
