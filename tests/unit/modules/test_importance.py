"""Engines that sample from other log-probs than the policy's: weights, metrics, refusals; and where the KL is put."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.modules import (
    GRPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    RLOOPolicyModule,
    Updates,
)
from lit_rlhf.objectives import FixedKL, ImportanceCorrection, MaskedImportance, TruncatedImportance
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.types import Generation
from tests.tolerances import FP32
from tests.unit.modules.one_iteration import (
    SlightlyOffEngine,
    TokenReward,
    build,
    full_batch,
    iterate,
)

OPTIONS: dict[str, Any] = {
    "num_samples": 2,
    "sampling": Sampling(max_new_tokens=4),
    "updates": Updates(epochs=1),
}
MASK = torch.tensor([[True, True, True, False]])
OLD, ENGINE = (
    torch.tensor([[-1.0, -1.0, -3.0, 7.0]]),
    torch.tensor([[-1.5, -4.0, -1.0, float("nan")]]),
)
CORRECTIONS = {
    "truncated": (TruncatedImportance(1.8), lambda ratio: min(ratio, 1.8)),
    "masked": (MaskedImportance(0.6, 1.7), lambda ratio: ratio if 0.6 <= ratio <= 1.7 else 0.0),
}


class SilentEngine(NativeEngine):
    """Reports no log-probs."""

    def generate(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        return replace(super().generate(backbone, request), logprobs=None)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_weights_are_ratios_within_bounds(name: str) -> None:
    correction, expected = CORRECTIONS[name]
    weights = correction(OLD, ENGINE, MASK)
    ratios = (OLD - ENGINE).exp()[0, :3].tolist()
    assert weights[0].tolist() == pytest.approx([*(expected(ratio) for ratio in ratios), 1.0])


def _rollout(module: PolicyModule, model_dir: Path) -> Any:
    return module.estimate(build(module).collect(full_batch(model_dir))[0])


@pytest.mark.parametrize("kind", [PPOPolicyModule, GRPOPolicyModule, RLOOPolicyModule])
def test_the_surrogate_is_weighed_token_by_token(
    tiny_model_dir: Path, kind: type[PolicyModule]
) -> None:
    correction = TruncatedImportance(1.2)
    spec = ModelSpec(name=str(tiny_model_dir))
    options = OPTIONS | {"engine": SlightlyOffEngine(), "recompute_logprobs": True}
    plain, weighed = (
        kind(spec, TokenReward(), importance_correction=c, **options) for c in (None, correction)
    )
    rollout = _rollout(plain, tiny_model_dir)
    build(weighed)
    mask = rollout.response_mask
    weights = correction(rollout.old_logprobs, rollout.completions.logprobs, mask)
    assert 1.19 < float(weights[mask].max()) <= 1.2 + 1e-6
    assert float(weights[mask].min()) < 0.8
    logprobs = rollout.old_logprobs * 1.01
    before, after = (
        plain.surrogate_loss(logprobs, rollout),
        weighed.surrogate_loss(logprobs, rollout),
    )
    torch.testing.assert_close(after.loss, weights * before.loss, **FP32)
    difference = (
        weighed.loss(rollout).loss - plain.loss(rollout).loss
    )  # what is not the surrogate stays as it is
    torch.testing.assert_close(
        difference[mask],
        ((weights - 1) * plain.surrogate_loss(rollout.old_logprobs, rollout).loss)[mask],
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_mismatch_is_logged(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir))
    options = OPTIONS | {"engine": SlightlyOffEngine(), "recompute_logprobs": True}
    logged = iterate(
        build(RLOOPolicyModule(spec, TokenReward(), **options)), full_batch(tiny_model_dir)
    )
    assert 0.1 < logged["train/sampling/sampling_logp_difference/mean"] < 0.4
    assert 0.35 < logged["train/sampling/sampling_logp_difference/max"] < 0.45
    assert "train/sampling/importance_sampling_ratio/mean" not in logged
    correction = TruncatedImportance(1.2)
    logged = iterate(
        build(RLOOPolicyModule(spec, TokenReward(), importance_correction=correction, **options)),
        full_batch(tiny_model_dir),
    )
    ratios = [
        logged[f"train/sampling/importance_sampling_ratio/{which}"]
        for which in ("min", "mean", "max")
    ]
    assert 0.6 < ratios[0] < 0.8 < ratios[1] < ratios[2] == pytest.approx(1.2)


def test_a_correction_that_would_do_nothing_is_refused(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir))
    correction: ImportanceCorrection = TruncatedImportance()
    with pytest.raises(
        ConfigurationError, match=r"TruncatedImportance.*Set recompute_logprobs: true"
    ):
        RLOOPolicyModule(spec, TokenReward(), importance_correction=correction)
    options = OPTIONS | {
        "engine": SilentEngine(),
        "recompute_logprobs": True,
        "importance_correction": correction,
    }
    with pytest.raises(ConfigurationError, match="SilentEngine gives no log-probs"):
        iterate(build(RLOOPolicyModule(spec, TokenReward(), **options)), full_batch(tiny_model_dir))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TruncatedImportance(0.0), "cap"),
        (lambda: MaskedImportance(low=1.0), "low"),
        (lambda: MaskedImportance(high=1.0), "high"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_terminal_kl_sits_on_the_last_token_and_sums_to_the_same(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir))
    spread, terminal = (
        PPOPolicyModule(spec, TokenReward(), terminal_kl=where, kl=FixedKL(0.7), **OPTIONS)
        for where in (False, True)
    )
    rollout = build(spread, moved=0.05).collect(full_batch(tiny_model_dir))[0]
    every, last = spread.shape_rewards(rollout), terminal.shape_rewards(rollout)
    mask = rollout.response_mask
    torch.testing.assert_close(
        masked_sum(every, mask, dim=-1), masked_sum(last, mask, dim=-1), **FP32
    )
    assert bool(((last != 0).sum(-1) == 1).all())
    assert bool(((every != 0).sum(-1) == mask.sum(-1)).all())


def test_target_kl_with_a_single_step_is_refused(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir))
    with pytest.raises(
        ConfigurationError,
        match=r"target_kl=0.1.*ends an iteration before its second optimizer step",
    ):
        RLOOPolicyModule(spec, TokenReward(), updates=Updates(target_kl=0.1))
    RLOOPolicyModule(spec, TokenReward(), updates=Updates(target_kl=0.1, minibatches=2))
