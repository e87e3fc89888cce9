"""Completions cut at the length limit, left out of the loss where asked: `mask_truncated`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import GRPOPolicyModule, OnlineDPOPolicyModule, PPOPolicyModule, Updates
from lit_rlhf.objectives import FixedKL, Reinforce, SequenceSum
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EstimatedRollout, EvaluatedRollout
from tests.tolerances import FP32
from tests.unit.modules.one_iteration import (
    TokenReward,
    build,
    full_batch,
    iterate,
    make_policy,
    parameters_of,
)

SOME = Sampling(max_new_tokens=4, stop_token_ids=list(range(100)))
"""Some completions end before the limit."""
NONE = Sampling(max_new_tokens=1, stop_token_ids=[])


class FinishedAlone(GRPOPolicyModule):
    """GRPO whose advantages of cut completions are 0, which teaches the same by another way."""

    finished: Tensor

    def estimate(self, rollout: EvaluatedRollout) -> EstimatedRollout:
        estimated = super().estimate(rollout)
        self.finished = rollout.completions.finished
        return rollout.with_advantages(estimated.advantages * self.finished[:, None])


def _moved(kind: type, model: Path, **options: Any) -> tuple[Tensor, dict[str, float], Any]:
    updates = Updates(epochs=1, minibatches=1, max_grad_norm=1e9)
    options = {"updates": updates, "sampling": SOME, "num_samples": 2} | options
    module = build(make_policy(kind, ModelSpec(name=str(model)), TokenReward(), **options))
    before = parameters_of(module)
    logged = iterate(module, full_batch(model))
    return parameters_of(module) - before, logged, module


def test_the_step_is_that_of_the_finished_ones(tiny_model_dir: Path) -> None:
    options = {"surrogate": Reinforce(), "reduction": SequenceSum(), "kl": FixedKL(0.0)}
    step, logged, _ = _moved(GRPOPolicyModule, tiny_model_dir, mask_truncated=True, **options)
    zeroed, plain, module = _moved(FinishedAlone, tiny_model_dir, **options)
    finished = int(module.finished.sum())
    assert 0 < finished < len(module.finished)
    torch.testing.assert_close(step * finished / len(module.finished), zeroed, **FP32)
    assert bool(step.any())
    for name in ("train/objective/scores", "train/completions/clipped_ratio"):
        assert logged[name] == plain[name], "what was sampled is logged whole"


@pytest.mark.parametrize("kind", [GRPOPolicyModule, PPOPolicyModule, OnlineDPOPolicyModule])
def test_where_all_are_cut_nothing_moves(kind: type, tiny_model_dir: Path) -> None:
    step, logged, _ = _moved(kind, tiny_model_dir, mask_truncated=True, sampling=NONE)
    assert logged["train/completions/clipped_ratio"] == 1.0
    assert not step.any()


def test_a_pair_goes_as_a_whole(tiny_model_dir: Path) -> None:
    _, _, module = _moved(OnlineDPOPolicyModule, tiny_model_dir, mask_truncated=True)
    rollout, _ = module.draw(full_batch(tiny_model_dir))
    finished = rollout.completions.finished.view(-1, 2).all(-1).repeat_interleave(2)
    assert bool(finished.any()) and not bool(finished.all())
    learned = module.learned(rollout)
    assert torch.equal(learned.response_mask.any(-1), finished)
