"""Each name that a module logs stands on its page, with unit, healthy range and what to do."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lit_rlhf import modules
from lit_rlhf.data import (
    DemonstrationDataModule,
    PlainText,
    PromptTextDataModule,
    RowsSource,
)
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.objectives import DPO, KTO, NPO, PlackettLuceDPO, TruncatedImportance
from lit_rlhf.rewards import LengthReward, WeightedSum
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import tiny_demonstrations, tiny_prompts
from tests.docs.pages import logged_names
from tests.unit.modules.one_iteration import make_policy
from tests.unit.modules.policies import CountVowels, fit, make_trainer
from tests.unit.modules.test_preference import batch_of, fit as fit_preferences, singles
from tests.walks import walk

COMMON = "modules/index.md"
PAGE = {
    "SupervisedModule": "modules/supervised.md",
    "RewardModelModule": "modules/reward.md",
    "PreferenceModule": "modules/preference.md",
    "PPOPolicyModule": "modules/ppo.md",
    "PPOPtxPolicyModule": "modules/ppo.md",
    "DistillationPolicyModule": "modules/distillation.md",
    **dict.fromkeys(
        ("OnlineDPOPolicyModule", "XPOPolicyModule", "NashMDPolicyModule", "SPPOPolicyModule"),
        "modules/online.md",
    ),
}
POLICIES = sorted(
    name
    for name in dir(modules)
    if name.endswith("PolicyModule") and name not in ("PolicyModule", "GroupPolicyModule")
)
RANKED = {
    "score": torch.tensor([[1.0, 0.0]] * 4),
    "branch_mask": torch.ones(4, 2, dtype=torch.bool),
}


def spec(model: Path) -> ModelSpec:
    return ModelSpec(name=str(model), lora=LoraSpec(rank=2))


def policy_names(name: str, model: Path) -> set[str]:
    """Of a policy with all that it can log by its options."""
    options: dict[str, Any] = {"sampling": Sampling(max_new_tokens=4)}
    if name == "PPOPolicyModule":
        options["entropy_coef"] = 0.01
    if name == "GRPOPolicyModule":
        options |= {"recompute_logprobs": True, "importance_correction": TruncatedImportance()}
    if name == "DistillationPolicyModule":
        options["lmbda"] = 0.5
    if name == "DAPOPolicyModule":
        options |= {"oversampling": 2, "num_samples": 2}
    reward = WeightedSum({"vowels": CountVowels(), "length": LengthReward()})
    module = make_policy(getattr(modules, name), spec(model), reward, **options)
    if name not in ("PPOPtxPolicyModule", "DistillationPolicyModule"):
        return set(fit(module, model).callback_metrics)
    text = DemonstrationDataModule(
        RowsSource([{"text": "some text"}] * 8),
        tokenizer=str(model),
        format=PlainText(),
        batch_size=4,
    )
    prompts = PromptTextDataModule(
        RowsSource(tiny_prompts(8)), tokenizer=str(model), text=text, batch_size=4
    )
    trainer = make_trainer()
    trainer.fit(module, prompts)
    return set(trainer.callback_metrics)


def known(name: str, page: str) -> bool:
    """Whether a name is in a table of the page or of all modules' page; <part> stands for any name."""
    patterns = logged_names(page) | logged_names(COMMON)
    return any(
        re.fullmatch(re.sub(r"<\w+>", "[^ ]+", re.escape(pattern).replace(r"\<", "<")), name)
        for pattern in patterns
    )


def check(found: set[str], page: str) -> None:
    assert found
    missing = sorted(n for n in found if n not in ("reward", "kl") and not known(n, page))
    assert not missing, f"docs/{page} lacks {missing}"


@pytest.mark.parametrize("name", walk(POLICIES, "PPOPolicyModule", "GRPOPolicyModule"))
def test_policies(name: str, tiny_model_dir: Path) -> None:
    check(policy_names(name, tiny_model_dir), PAGE.get(name, "modules/group.md"))


@pytest.mark.parametrize("loss", [DPO(), KTO(), NPO(), PlackettLuceDPO()])
def test_direct_methods(loss: Any, tiny_model_dir: Path) -> None:
    label = torch.tensor([True, False, True, False])
    batch = (
        batch_of(**RANKED)
        if isinstance(loss, PlackettLuceDPO)
        else batch_of()
        if isinstance(loss, DPO)
        else singles(label=label)
    )
    module = modules.PreferenceModule(spec(tiny_model_dir), loss)
    check(
        set(fit_preferences(module, [batch])[0].callback_metrics),
        PAGE["PreferenceModule"],
    )


def test_reward_models(tiny_model_dir: Path) -> None:
    loader = DataLoader([batch_of()], batch_size=None)  # type: ignore[arg-type]
    trainer = make_trainer()
    trainer.fit(modules.RewardModelModule(spec(tiny_model_dir)), loader, loader)
    assert "val/accuracy" in trainer.callback_metrics
    check(set(trainer.callback_metrics), PAGE["RewardModelModule"])


def test_supervised(tiny_model_dir: Path) -> None:
    data = DemonstrationDataModule(
        RowsSource(tiny_demonstrations(8)),
        val=RowsSource(tiny_demonstrations(4, seed=1)),
        tokenizer=str(tiny_model_dir),
        batch_size=4,
    )
    trainer = make_trainer()
    trainer.fit(modules.SupervisedModule(spec(tiny_model_dir)), data)
    assert "val/loss" in trainer.callback_metrics
    check(set(trainer.callback_metrics), PAGE["SupervisedModule"])


def test_a_name_that_no_page_has() -> None:
    assert not known("train/nonsense", COMMON)
    assert known("train/rewards/anything/mean", COMMON)
