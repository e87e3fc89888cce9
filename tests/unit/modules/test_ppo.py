"""PPO from outside: what an iteration computes, before, during and after its updates."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import GAE, PolicyModule, PPOPolicyModule, Updates, ValueLoss
from lit_rlhf.modules.ppo import PPORollout, ValuedRollout
from lit_rlhf.objectives import AdaptiveKL, FixedKL
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Completions, Scores
from tests.tolerances import FP32, FP32_MODEL
from tests.unit.modules.policies import (
    ARRANGEMENTS,
    CountVowels,
    fit,
    make_ppo,
    make_trainer,
    prompt_batch,
    prompt_loader,
)
from tests.walks import walk


def collected(module: PPOPolicyModule, model_dir: Path) -> PPORollout:
    """The module's first rollout, ready for the first minibatch."""
    module.configure_model()
    return module.estimate(module.collect(prompt_batch(model_dir))[0])


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_an_untrained_policy_has_ratio_one_and_no_kl(
    tiny_model_dir: Path, arrangement: str
) -> None:
    module = make_ppo(tiny_model_dir, arrangement)
    rollout = collected(module, tiny_model_dir)
    mask = rollout.response_mask
    torch.testing.assert_close(rollout.old_logprobs[mask], rollout.ref_logprobs[mask], **FP32_MODEL)
    assert bool((rollout.old_logprobs[mask] < -0.1).all()), (
        "log-probs of a random model are well below 0"
    )
    output = module.loss(rollout)
    torch.testing.assert_close(
        output.metrics["val/ratio"][mask], torch.ones(int(mask.sum())), **FP32_MODEL
    )
    assert float(output.metrics["policy/clipfrac_avg"].sum()) == 0.0
    assert float(output.metrics["policy/approxkl_avg"].abs().max()) < 1e-6


@pytest.mark.parametrize("arrangement", walk(ARRANGEMENTS, *list(ARRANGEMENTS)[:2]))
def test_every_trainable_parameter_learns_and_nothing_else_moves(
    tiny_model_dir: Path, arrangement: str
) -> None:
    module = make_ppo(tiny_model_dir, arrangement)
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainable = set(module.trainable_names())
    fit(module, tiny_model_dir, max_epochs=2)
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable
    assert module.iteration == 4


def test_values_are_used_and_learned(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir)
    rollout = collected(module, tiny_model_dir)
    torch.testing.assert_close(
        rollout.values, torch.zeros_like(rollout.values)
    )  # a value head starts at 0
    undiscounted = make_ppo(tiny_model_dir, gae=GAE(lam=1.0, whiten=False))
    rollout = collected(undiscounted, tiny_model_dir)
    to_go = undiscounted.shape_rewards(rollout).flip(-1).cumsum(-1).flip(-1) * rollout.response_mask
    torch.testing.assert_close(rollout.returns, to_go, **FP32)


@pytest.mark.parametrize("arrangement", [a for a in ARRANGEMENTS if "head" in a])
def test_the_engine_gives_the_values_of_a_pass_of_their_own(
    tiny_model_dir: Path, arrangement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_ppo(tiny_model_dir, arrangement)
    module.configure_model()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a head of 0 would agree with anything
        module.backbone.heads["value"].weight.normal_(generator=draw)
    ours = ValuedRollout.of(module.collect(prompt_batch(tiny_model_dir))[0])
    monkeypatch.setattr(module, "sampled_values", None)
    theirs = ValuedRollout.of(module.collect(prompt_batch(tiny_model_dir))[0])
    assert torch.equal(ours.completions.tokens, theirs.completions.tokens)
    assert float(theirs.values.abs().max()) > 0.1
    torch.testing.assert_close(ours.values, theirs.values, **FP32_MODEL)
    monkeypatch.undo()
    monkeypatch.setattr(PPOPolicyModule, "_values", None)  # no pass is made
    module.collect(prompt_batch(tiny_model_dir))


def test_score_sits_on_the_last_token_and_kl_on_each(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, kl=FixedKL(0.5), missing_eos_penalty=2.0)
    module.configure_model()
    rollout, _ = module.collect(prompt_batch(tiny_model_dir))
    rollout = replace(rollout, ref_logprobs=rollout.ref_logprobs - 0.25)
    rewards = module.shape_rewards(rollout)
    for row in range(len(rewards)):
        length = int(rollout.response_mask[row].sum())
        for t in range(rewards.shape[1]):
            expected = 0.0
            if t < length:
                expected = -0.5 * float(rollout.old_logprobs[row, t] - rollout.ref_logprobs[row, t])
            if t == length - 1:
                expected += float(rollout.scores.total[row]) - (
                    0.0 if rollout.completions.finished[row] else 2.0
                )
            assert float(rewards[row, t]) == pytest.approx(expected, abs=1e-5)


def _gradients(module: PPOPolicyModule, model_dir: Path) -> dict[str, Tensor]:
    """Gradients just before the first optimizer step."""
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> Tensor:
        if not found:
            found.update(
                {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
            )
        return original()

    original = module.take_step
    module.take_step = keep  # type: ignore[method-assign]
    fit(module, model_dir, batch_size=8, limit_train_batches=1)
    return found


def test_gradients_do_not_depend_on_microbatches(tiny_model_dir: Path) -> None:
    whole, pieces = (
        _gradients(
            make_ppo(
                tiny_model_dir,
                num_samples=2,
                updates=Updates(epochs=1, microbatch_tokens=budget, max_grad_norm=0.0),
            ),
            tiny_model_dir,
        )
        for budget in (100_000, 1)
    )
    assert whole.keys() == pieces.keys()
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, **FP32)


def test_a_step_with_gradients_that_are_not_finite_is_skipped_and_counted(
    tiny_model_dir: Path,
) -> None:
    module = make_ppo(tiny_model_dir, updates=Updates(epochs=1))
    module.configure_model()
    trained = next(p for p in module.parameters() if p.requires_grad)
    trained.register_hook(lambda gradient: gradient + math.inf)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = fit(module, tiny_model_dir, limit_train_batches=1)
    assert module.guard.skipped == 1
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 1.0


def test_target_kl_ends_an_iteration_early(tiny_model_dir: Path) -> None:
    def steps(target: float | None) -> int:
        module = make_ppo(
            tiny_model_dir,
            updates=Updates(epochs=4, minibatches=2, target_kl=target),
            optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        )
        return fit(module, tiny_model_dir, limit_train_batches=1).global_step

    assert steps(None) == 8
    assert 1 < steps(1e-7) < 8


def test_critic_warmup_leaves_the_policy_alone(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, "lora-adapter", value_loss=ValueLoss(warmup=1))
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module, tiny_model_dir, limit_train_batches=1)
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert not any(".policy." in name for name in moved)


def test_adaptive_kl_moves_after_each_iteration(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, kl=AdaptiveKL(init=0.1, target=5.0, horizon=8))
    fit(module, tiny_model_dir)
    assert module.kl.value < 0.1  # the KL is far below its target


def test_value_parameters_have_their_own_learning_rate(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, "lora-adapter", value_loss=ValueLoss(lr=0.5))
    module.configure_model()
    groups = {group["name"]: group for group in module.parameter_groups()}
    assert groups["value"]["lr"] == 0.5
    names = {id(p): name for name, p in module.named_parameters()}
    assert all("value" in names[id(p)] for p in groups["value"]["params"])
    assert not any("value" in names[id(p)] for p in groups["policy"]["params"])
    total = sum(len(group["params"]) for group in groups.values())
    assert total == len(module.trainable_names())


def test_a_score_that_is_not_finite_names_its_sample(tiny_model_dir: Path) -> None:
    class Broken(CountVowels):
        def score(self, completions: Completions) -> Scores:
            scores = super().score(completions)
            scores.total[2] = math.nan
            return scores

    module = make_ppo(tiny_model_dir)
    module.reward = Broken()
    with pytest.raises(DataError, match=r"Broken gave nan for 1 of 4 completions.*the hotel"):
        fit(module, tiny_model_dir, limit_train_batches=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": Sampling(top_p=0.9)}, "top_p=0.9"),
        ({"sampling": Sampling(top_k=5)}, "top_k=5"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"entropy_coef": -0.5}, r"entropy_coef=-0\.5"),
    ],
)
def test_bad_options_are_refused_at_once(
    tiny_model_dir: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_ppo(tiny_model_dir, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Updates(epochs=0), r"Updates\(epochs=0\)"),
        (lambda: Updates(minibatches=0), "minibatches=0"),
        (lambda: Updates(microbatch_tokens=0), "microbatch_tokens=0"),
        (lambda: Updates(target_kl=-1.0), r"target_kl=-1\.0"),
        (lambda: Updates(max_grad_norm=-1.0), r"max_grad_norm=-1\.0"),
        (lambda: Updates(max_skipped=0), "max_skipped=0"),
        (lambda: GAE(gamma=1.5), "gamma=1.5"),
        (lambda: GAE(lam=-0.1), r"lam=-0\.1"),
        (lambda: ValueLoss(clip=0.0), "clip=0"),
        (lambda: ValueLoss(coef=-1.0), "coef=-1"),
        (lambda: ValueLoss(warmup=-1), "warmup=-1"),
    ],
)
def test_groups_of_options_refuse_numbers_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_dry_run_has_all_steps_of_its_iterations(tiny_model_dir: Path) -> None:
    trainer, module = make_trainer(fast_dev_run=2), make_ppo(tiny_model_dir)
    trainer.fit(module, prompt_loader(tiny_model_dir, batch_size=2))
    assert (module.iteration, trainer.global_step) == (2, 2 * module.updates.per_iteration)


def test_max_steps_is_refused(tiny_model_dir: Path) -> None:
    trainer = make_trainer(max_steps=10)
    with pytest.raises(ConfigurationError, match=r"max_steps=10 counts optimizer steps"):
        trainer.fit(make_ppo(tiny_model_dir), prompt_loader(tiny_model_dir))


class Nothing(PolicyModule):
    """Forgets what makes an algorithm."""

    def collect(self, batch: Any) -> Any:
        raise AssertionError("it sampled before it was refused")


def test_a_method_without_an_estimate_is_refused_before_it_samples(tiny_model_dir: Path) -> None:
    module = Nothing(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)), CountVowels())
    with pytest.raises(ConfigurationError, match="Nothing must override estimate"):
        fit(module, tiny_model_dir)


def test_validation_is_the_same_each_time_and_leaves_no_trace(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir)
    loader = prompt_loader(tiny_model_dir)
    first = make_trainer().validate(module, loader, verbose=False)
    second = make_trainer().validate(module, loader, verbose=False)
    assert first == second
    assert first[0]["val/objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert module.iteration == 0


def test_rollouts_do_not_depend_on_the_batch(tiny_model_dir: Path) -> None:
    module = make_ppo(tiny_model_dir, num_samples=2)
    module.configure_model()
    whole, _ = module.collect(prompt_batch(tiny_model_dir))
    part, _ = module.collect(prompt_batch(tiny_model_dir, ["what of it ", "12"], start=6))
    width = part.response_mask.shape[1]
    torch.testing.assert_close(part.completions.tokens, whole.completions.tokens[12:, :width])
    torch.testing.assert_close(part.old_logprobs, whole.old_logprobs[12:, :width], **FP32_MODEL)
