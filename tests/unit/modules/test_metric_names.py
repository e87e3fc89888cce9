"""Names of logged metrics, which other trainers' dashboards know; and bad labels, module by module."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PreferenceModule, RewardModelModule, RLOOPolicyModule
from lit_rlhf.objectives import (
    DPO,
    KTO,
    AllPairs,
    BradleyTerry,
    ConservativeDPO,
    PlackettLuce,
    PlackettLuceDPO,
    RobustDPO,
    SoftLabelDPO,
)
from lit_rlhf.rollout import Sampling
from tests.unit.modules.policies import CountVowels, fit as fit_policy, make_ppo, make_trainer
from tests.unit.modules.test_preference import (
    PAIRS,
    batch_of,
    fit as fit_preferences,
    ready,
    singles,
)

PREFERENCE = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}
ROLLOUT = {"completions/mean_length", "completions/clipped_ratio"}
PPO = {
    *(
        "objective/kl",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
    ),
    *("policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg"),
    *("val/clipfrac_avg", "val/ratio", "val/num_eos_tokens"),
}


def logged_by(kind: str, model: Path) -> dict[str, Any]:
    spec = ModelSpec(name=str(model), lora=LoraSpec(rank=2))
    if kind == "reward":
        trainer = make_trainer()
        loader = torch.utils.data.DataLoader([batch_of()], batch_size=None)  # type: ignore[arg-type]
        trainer.fit(RewardModelModule(spec), loader)
        return trainer.callback_metrics
    if kind in ("dpo", "kto"):
        labels = torch.tensor([True, False, True, False])
        batch = batch_of() if kind == "dpo" else singles(label=labels)
        return fit_preferences(PreferenceModule(spec, DPO() if kind == "dpo" else KTO()), [batch])[
            0
        ].callback_metrics
    if kind == "ppo":
        return fit_policy(make_ppo(model, entropy_coef=0.01), model).callback_metrics
    module = RLOOPolicyModule(
        spec, CountVowels(), sampling=Sampling(max_new_tokens=4), num_samples=2
    )
    return fit_policy(module, model).callback_metrics


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("reward", {"accuracy", "margin", "min_reward", "mean_reward", "max_reward"}),
        ("dpo", PREFERENCE | {"rewards/accuracies"}),
        ("kto", PREFERENCE - {"rewards/margins"} | {"kl"}),
        ("ppo", PPO | ROLLOUT | {"policy/entropy_avg"}),
        ("rloo", {"objective/scores", "objective/kl"} | ROLLOUT),
    ],
)
def test_names(kind: str, names: set[str], tiny_model_dir: Path) -> None:
    found = logged_by(kind, tiny_model_dir)
    assert {f"train/{name}" for name in names} <= set(found), sorted(found)


# -- labels that can't be, and batches with little in them ------------------------------------------------------------


@pytest.mark.parametrize("loss", [ConservativeDPO, RobustDPO, BradleyTerry])
@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0])
def test_label_smoothing_out_of_range(loss: Any, smoothing: float) -> None:
    with pytest.raises(ConfigurationError, match=r"label_smoothing.*\[0, 0\.5\)"):
        loss(label_smoothing=smoothing)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_soft_label_that_is_no_probability(p: float, tiny_model_dir: Path) -> None:
    batch = batch_of(p_chosen=torch.tensor([0.5, p, 0.5, 0.5]))
    with pytest.raises(DataError, match=rf"p_chosen={p}"):
        ready(tiny_model_dir, SoftLabelDPO())._step(batch, "train")
    with pytest.raises(DataError, match=rf"p_chosen={p}"):
        BradleyTerry().of_batch(torch.zeros(4, 2), batch)


@pytest.mark.parametrize("label", [True, False])
def test_a_batch_of_one_class_has_a_loss(label: bool, tiny_model_dir: Path) -> None:
    """KTO's losses of the two classes are separate: with one alone the gradient is that one's."""
    module = ready(tiny_model_dir, KTO())
    output = module.loss_output(singles(label=torch.full((4,), label)))
    loss = module.reduce(output.loss, {})
    loss.backward()
    assert loss.isfinite()
    assert any(
        w.grad is not None and w.grad.abs().max() > 0
        for w in module.parameters()
        if w.requires_grad
    )


def test_lists_need_two_and_scores(tiny_model_dir: Path) -> None:
    module = ready(tiny_model_dir, PlackettLuceDPO())
    alone = singles(score=torch.zeros(4, 1), branch_mask=torch.ones(4, 1, dtype=torch.bool))
    with pytest.raises(
        DataError,
        match="PlackettLuceDPO ranks the completions of a prompt, but the batch has 1 of each",
    ):
        module._step(alone, "train")
    with pytest.raises(DataError, match="score"):
        module._step(batch_of(), "train")
    with pytest.raises(DataError, match="needs the column 'score'"):
        AllPairs().of_batch(torch.zeros(4, 3), batch_of())


@pytest.mark.parametrize("loss", [PlackettLuceDPO(), PlackettLuce(), AllPairs()])
def test_a_prompt_without_branches_counts_as_0(loss: Any, tiny_model_dir: Path) -> None:
    mask = torch.tensor([[True, True]] * 3 + [[False, False]])
    batch = batch_of(PAIRS, score=torch.tensor([[1.0, 0.0]] * 4), branch_mask=mask)
    if isinstance(loss, PlackettLuceDPO):
        values = ready(tiny_model_dir, loss).loss_output(batch).loss
    else:
        scores = torch.randn(4, 2, requires_grad=True)
        values = loss.of_batch(scores, batch).loss
        values.sum().backward()
        assert scores.grad is not None and scores.grad.isfinite().all()
        assert scores.grad[3].abs().max() == 0
    assert values.isfinite().all()
    assert values[3] == 0 and values[0] > 0
