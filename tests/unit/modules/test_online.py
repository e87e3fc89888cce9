"""Online preference modules from outside: which pairs they make, who draws them, what a step does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import (
    MixtureOpponent,
    NashMDPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    SPPOPolicyModule,
    Updates,
    XPOPolicyModule,
)
from lit_rlhf.rewards import LengthReward, MonitoredReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EvaluatedRollout, Scores
from tests.tolerances import FP32, FP32_MODEL
from tests.unit.modules.policies import CountVowels, fit, make_trainer, prompt_batch, prompt_loader
from tests.walks import walk

METHODS: dict[str, tuple[type[PolicyModule], dict[str, Any]]] = {
    "online-dpo": (OnlineDPOPolicyModule, {"num_samples": 4}),
    "bernoulli": (OnlineDPOPolicyModule, {"oracle": o.BernoulliLabels()}),
    "ipo": (OnlineDPOPolicyModule, {"loss": o.IPO(0.1)}),
    "xpo": (XPOPolicyModule, {"alpha": 0.1}),
    "sppo": (SPPOPolicyModule, {"loss": o.SPPO(0.1), "updates": Updates(epochs=2)}),
    "nash-md": (NashMDPolicyModule, {"opponent": MixtureOpponent(0.25)}),
}


def make(name: str, model_dir: Path, *, lora: bool = True, **options: Any) -> PolicyModule:
    kind, own = METHODS[name]
    spec = ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4) if lora else None)
    defaults: dict[str, Any] = {
        "sampling": Sampling(max_new_tokens=6),
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    }
    return kind(spec, CountVowels(), **(defaults | own | options))


def collected(module: PolicyModule, model_dir: Path) -> Any:
    """The first rollout, ready for the first minibatch."""
    module.configure_model()
    return module.estimate(module.collect(prompt_batch(model_dir))[0])


def disturb(module: PolicyModule) -> None:
    """Move the policy away from the reference."""
    with torch.no_grad():
        for name, parameter in module.backbone.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.add_(
                    0.3
                    * torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(
                        parameter
                    )
                )


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", walk(METHODS, "online-dpo", "nash-md"))
def test_every_trainable_parameter_learns_and_nothing_else_moves(
    tiny_model_dir: Path, name: str, lora: bool
) -> None:
    module = make(name, tiny_model_dir, lora=lora)
    module.configure_model()
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    trainer = fit(module, tiny_model_dir, max_epochs=2)
    moved = {key for key, p in module.named_parameters() if not torch.equal(p, before[key])}
    assert moved == set(module.trainable_names())
    assert module.iteration == 4
    wanted = {"train/objective/kl", "train/objective/scores", "train/policy/approxkl_avg"}
    wanted |= (
        {"train/preference/win_rate"}
        if name == "nash-md"
        else {"train/rewards/margins", "train/loss/pair_avg"}
    )
    assert wanted <= set(trainer.callback_metrics)
    assert all(bool(torch.isfinite(value)) for value in trainer.callback_metrics.values())


def test_neighbours_are_paired_and_labelled_by_their_scores(tiny_model_dir: Path) -> None:
    module = make("online-dpo", tiny_model_dir, oracle=o.SoftLabels(2.0), missing_eos_penalty=0.5)
    rollout = collected(module, tiny_model_dir)
    assert rollout.num_samples == 4
    scores = rollout.scores.total - 0.5 * (~rollout.completions.finished).float()
    for first in range(0, len(scores), 2):
        chance = 1 / (1 + float(torch.exp(-(scores[first] - scores[first + 1]) / 2.0)))
        assert float(rollout.wins[first]) == pytest.approx(chance, abs=1e-6)
        assert float(rollout.wins[first + 1]) == pytest.approx(1 - chance, abs=1e-6)


def test_oracles() -> None:
    margins = torch.tensor([-3.0, 0.0, 3.0]).repeat(4000)
    draws = torch.arange(12000) / 12000
    order = torch.randperm(12000, generator=torch.Generator().manual_seed(0))
    soft = o.SoftLabels(1.5)(margins, draws)
    assert_close(soft[:3], torch.tensor([0.1192, 0.5, 0.8808]), rtol=1e-3, atol=1e-4)
    drawn = o.BernoulliLabels(1.5)(margins, draws[order])
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert_close(drawn.view(-1, 3).mean(0), soft[:3], rtol=0.0, atol=0.03)
    assert o.HardLabels()(margins, draws)[:3].tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ConfigurationError, match=r"SoftLabels\(temperature=0.0\)"):
        o.SoftLabels(0.0)


def test_bernoulli_labels_depend_on_the_seed_alone(tiny_model_dir: Path) -> None:
    runs = [
        collected(make("bernoulli", tiny_model_dir, seed=seed), tiny_model_dir).wins
        for seed in (0, 0, 1)
    ]
    assert set(runs[0].tolist()) == {0.0, 1.0}
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def _loss(module: PolicyModule, rollout: EvaluatedRollout) -> Tensor:
    output = module.loss(rollout)
    mask = rollout.response_mask
    return module.reduction.numerator(output.loss, mask) / module.reduction.denominator(mask)


def test_the_loss_is_the_expectation_of_the_injected_one_over_the_labels(
    tiny_model_dir: Path,
) -> None:
    module = make("online-dpo", tiny_model_dir, loss=o.DPO(0.3))
    rollout = collected(module, tiny_model_dir)
    assert float(_loss(module, rollout).detach()) == pytest.approx(
        0.693147, abs=1e-4
    )  # policy and reference are the same
    disturb(module)
    out = module.policy_forward(rollout)
    assert out.logprobs is not None
    u = ((out.logprobs - rollout.ref_logprobs) * rollout.response_mask).sum(-1).view(-1, 2)
    h, p = 0.3 * (u[:, 0] - u[:, 1]), rollout.wins.view(-1, 2)[:, 0]
    by_hand = -(p * h.sigmoid().log() + (1 - p) * (-h).sigmoid().log()).mean()
    assert float(by_hand.detach()) > 0.7
    assert_close(_loss(module, rollout), by_hand, **FP32_MODEL)
    labels = {"p_chosen": torch.where(p > 0.5, p, 1 - p)}
    assert bool((labels["p_chosen"] >= 0.5).all())
    soft = make("online-dpo", tiny_model_dir, loss=o.SoftLabelDPO(0.3))
    soft.backbone = module.backbone
    assert_close(_loss(soft, rollout), by_hand, **FP32_MODEL)


def test_a_constant_added_to_the_reward_of_a_prompt_changes_nothing(tiny_model_dir: Path) -> None:
    module = make("online-dpo", tiny_model_dir)
    rollout = collected(module, tiny_model_dir)
    shift = torch.arange(rollout.num_prompts).repeat_interleave(rollout.num_samples).float()
    shifted = module.estimate(replace(rollout, scores=Scores(rollout.scores.total + shift)))
    assert_close(shifted.wins, rollout.wins, **FP32)


def test_gradients_do_not_depend_on_microbatches(tiny_model_dir: Path) -> None:
    found: list[dict[str, Tensor]] = []
    for budget in (100_000, 1):
        module = make(
            "online-dpo",
            tiny_model_dir,
            updates=Updates(microbatch_tokens=budget, max_grad_norm=0.0),
        )
        gradients: dict[str, Tensor] = {}

        def keep(module: PolicyModule = module, gradients: dict[str, Tensor] = gradients) -> Tensor:
            gradients.update(
                {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
            )
            return type(module).take_step(module)

        module.take_step = keep  # type: ignore[method-assign]
        fit(module, tiny_model_dir, batch_size=8, limit_train_batches=1)
        found.append(gradients)
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in found[0].values())
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient, **FP32)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_xpo_plays_against_the_reference_wherever_the_policy_is(
    tiny_model_dir: Path, lora: bool
) -> None:
    module = make("xpo", tiny_model_dir, lora=lora)
    first = collected(module, tiny_model_dir)
    assert first.num_samples == 2
    assert not torch.equal(first.completions.tokens[::2], first.completions.tokens[1::2])
    disturb(module)
    second = collected(module, tiny_model_dir)
    width = min(first.response_mask.shape[1], second.response_mask.shape[1])
    assert torch.equal(
        first.completions.tokens[1::2, :width], second.completions.tokens[1::2, :width]
    )
    assert not torch.equal(
        first.completions.tokens[::2, :width], second.completions.tokens[::2, :width]
    )


def test_xpo_lowers_what_the_reference_wrote(tiny_model_dir: Path) -> None:
    rollout = collected(make("xpo", tiny_model_dir, alpha=0.0), tiny_model_dir)
    losses = []
    for alpha in (0.0, 0.25):
        module = make("xpo", tiny_model_dir, alpha=alpha)
        module.configure_model()
        losses.append(float(_loss(module, rollout).detach()))
    logprobs = (rollout.old_logprobs * rollout.response_mask).sum(-1)[1::2]
    assert losses[1] - losses[0] == pytest.approx(0.25 * float(logprobs.mean()), rel=1e-4)


def test_metrics_of_xpo_are_of_the_policys_own_samples(tiny_model_dir: Path) -> None:
    module = make("xpo", tiny_model_dir)
    seen: list[Any] = []
    keep = module.collect
    module.collect = lambda batch: seen.append(keep(batch)) or seen[-1]  # type: ignore[func-returns-value,method-assign]
    trainer = fit(module, tiny_model_dir, batch_size=8, limit_train_batches=1)
    entropies = -(seen[0][0].old_logprobs * seen[0][0].response_mask).sum(-1)
    assert float(trainer.callback_metrics["train/objective/entropy"]) == pytest.approx(
        float(entropies[::2].mean())
    )
    assert float(entropies[::2].mean()) != pytest.approx(float(entropies.mean()))


def test_sppo_regresses_to_the_policy_that_sampled(tiny_model_dir: Path) -> None:
    module = make("sppo", tiny_model_dir, loss=o.SPPO(0.5))
    module.configure_model()
    disturb(module)  # far from the reference, which must not matter
    rollout = collected(module, tiny_model_dir)
    by_hand = 0.5 * (2.0 * (rollout.wins - 0.5)).square().view(-1, 2).sum(-1)
    assert float(by_hand.max()) > 0.1
    assert_close(_loss(module, rollout), by_hand.mean(), **FP32_MODEL)


def test_nash_md_keeps_its_own_samples_and_rewards_winning(tiny_model_dir: Path) -> None:
    module = make("nash-md", tiny_model_dir, kl=o.FixedKL(0.5))
    module.configure_model()
    disturb(module)
    pairs, _ = module.collect(prompt_batch(tiny_model_dir))
    rollout = module.estimate(pairs)
    assert (pairs.num_samples, rollout.num_samples) == (2, 1)
    assert torch.equal(rollout.scores.total, pairs.scores.total[::2])
    kl = ((rollout.old_logprobs - rollout.ref_logprobs) * rollout.response_mask).sum(-1)
    assert float(kl.abs().max()) > 0.1
    wins = (pairs.scores.total[::2] - pairs.scores.total[1::2]).sigmoid()
    assert_close(rollout.advantages[:, 0], wins - 0.5 - 0.5 * kl, **FP32_MODEL)


def test_a_monitor_is_logged_in_training_and_validation(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    reward = MonitoredReward(CountVowels(), {"gold": LengthReward(unit="characters")})
    module = OnlineDPOPolicyModule(spec, reward, sampling=Sampling(max_new_tokens=6))
    trainer = fit(module, tiny_model_dir, batch_size=8, limit_train_batches=1)
    metrics = dict(trainer.callback_metrics)
    assert metrics["train/rewards/proxy/mean"] == metrics["train/objective/scores"]
    assert metrics["train/rewards/gold/mean"] > metrics["train/rewards/proxy/mean"]
    found = make_trainer().validate(module, prompt_loader(tiny_model_dir), verbose=False)[0]
    assert found["val/rewards/proxy/mean"] == pytest.approx(found["val/objective/scores"])
    assert found["val/rewards/gold/mean"] > found["val/rewards/proxy/mean"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("online-dpo", {"num_samples": 3}, "num_samples=3 samples of a prompt can't be paired"),
        ("online-dpo", {"loss": o.TDPO1()}, r"TDPO1 needs \['kl'\]"),
        ("online-dpo", {"loss": o.AOT()}, "AOT looks at a whole batch"),
        ("xpo", {"alpha": -0.1}, r"alpha=-0\.1.* must be 0 or more"),
    ],
)
def test_bad_options_are_refused(
    tiny_model_dir: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(name, tiny_model_dir, **options)


def test_a_mixture_has_a_weight_in_range() -> None:
    with pytest.raises(ConfigurationError, match=r"weight=1\.5.* must be in \[0, 1\]"):
        MixtureOpponent(1.5)


def test_equal_scores_teach_nothing_but_the_way_back(tiny_model_dir: Path) -> None:
    module = make("online-dpo", tiny_model_dir)
    rollout = collected(module, tiny_model_dir)
    same = module.estimate(replace(rollout, scores=Scores(torch.ones_like(rollout.scores.total))))
    _loss(module, same).backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients)
