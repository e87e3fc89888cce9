"""Best-of-n into weights from outside: where samples stand among those of the reference, and what is refused."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import BestOfNPolicyModule, ReferenceOpponent
from lit_rlhf.objectives import BestOfN
from lit_rlhf.rewards import NormalizedReward
from lit_rlhf.rollout import Sampling
from tests.tolerances import FP32
from tests.unit.modules.one_iteration import TokenReward, build, iterate
from tests.unit.modules.policies import PROMPTS, prompt_batch

SHORT = Sampling(max_new_tokens=5)


def make(model_dir: Path, **options: Any) -> Any:
    spec, reward = ModelSpec(name=str(model_dir)), options.pop("reward", TokenReward())
    return BestOfNPolicyModule(spec, reward, sampling=SHORT, **options)


def test_samples_are_compared_with_those_of_the_reference(tiny_model_dir: Path) -> None:
    reward = NormalizedReward(TokenReward())
    module = build(
        make(
            tiny_model_dir,
            n=3,
            num_anchors=6,
            num_samples=2,
            missing_eos_penalty=0.7,
            reward=reward,
        ),
        moved=0.05,
    )
    batch = prompt_batch(tiny_model_dir)
    rollout, samples = module.collect(batch)
    count = len(PROMPTS)
    assert len(samples) == 2 * count
    assert reward.seen.n == 2 * count  # anchors don't count
    request = module.rollout_request(batch, SHORT, "opponent", 6)
    drawn = ReferenceOpponent().generate(module, request)
    assert drawn.logprobs is not None

    def score(tokens: torch.Tensor, mask: torch.Tensor, finished: torch.Tensor) -> float:
        share = float((tokens[mask] % 2 == 0).float().sum()) / max(int(mask.sum()), 1)
        mean, std = reward.moments()
        return (share - mean) / std - (0.0 if finished else 0.7)

    anchors = [score(*row) for row in zip(drawn.tokens, drawn.mask, drawn.finished, strict=True)]
    own = rollout.completions
    scores = [score(*row) for row in zip(own.tokens, own.mask, own.finished, strict=True)]
    assert not torch.equal(own.tokens[0], drawn.tokens[0, : own.tokens.shape[1]])
    for i, value in enumerate(scores):
        others = anchors[6 * (i // 2) : 6 * (i // 2 + 1)]
        below = sum(other < value - 1e-6 for other in others) / 7
        at_most = (1 + sum(other < value + 1e-6 for other in others)) / 7
        assert float(rollout.scores.parts["reference_below"][i]) == pytest.approx(below)
        assert float(rollout.scores.parts["reference_at_most"][i]) == pytest.approx(at_most)
    parts = rollout.scores.parts
    expected = BestOfN(3)(parts["reference_below"], parts["reference_at_most"])
    kl = (rollout.old_logprobs - rollout.ref_logprobs).sum(-1)
    assert_close(module.shape_rewards(rollout).sum(-1), expected - kl, **FP32)


def test_the_policy_rises_among_the_samples_of_the_reference(tiny_model_dir: Path) -> None:
    module = build(make(tiny_model_dir, n=4, num_anchors=8, num_samples=8))
    logged = [iterate(module, prompt_batch(tiny_model_dir), lr=0.4) for _ in range(12)]

    def gain(name: str) -> float:
        return fmean(each[f"train/{name}"] for each in logged[-5:]) - logged[0][f"train/{name}"]

    assert gain("rewards/reference_below/mean") > 0.05
    assert gain("objective/scores") > 0.03


@pytest.mark.parametrize("option", [{"n": 1}, {"num_anchors": 0}])
def test_options_out_of_range_are_refused(tiny_model_dir: Path, option: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"BestOfNPolicyModule.*{next(iter(option))}"):
        make(tiny_model_dir, **option)
