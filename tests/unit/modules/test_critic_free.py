"""ReMax, REBEL and DAPO from outside: baselines, pairs and which prompts are trained on."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.policy_losses import relative_reward_loss
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import (
    DAPOPolicyModule,
    PolicyModule,
    REBELPolicyModule,
    ReMaxPolicyModule,
    Updates,
    dapo,
    minibatches,
    policy,
)
from lit_rlhf.modules.minibatches import select_prompts
from lit_rlhf.objectives import FixedKL, TokenMean
from lit_rlhf.rewards import FunctionReward, NormalizedReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import PromptBatch, ScoredRollout
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP32, FP64
from tests.unit.modules.one_iteration import TokenReward, build, iterate
from tests.unit.modules.policies import PROMPTS, prompt_batch

SHORT = Sampling(max_new_tokens=5)


def collected(module: PolicyModule, batch: PromptBatch) -> Any:
    return module.estimate(build(module).collect(batch)[0])


# -- ReMax -------------------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_score_of_the_greedy_completion(tiny_model_dir: Path) -> None:
    reward = NormalizedReward(TokenReward())
    spec = ModelSpec(name=str(tiny_model_dir))
    module = ReMaxPolicyModule(
        spec, reward, sampling=SHORT, num_samples=2, missing_eos_penalty=0.25, kl=FixedKL(0.1)
    )
    found, samples = build(module).collect(prompt_batch(tiny_model_dir))
    rollout = module.estimate(found)
    baselines = rollout.scores.parts["greedy"]
    assert reward.seen.n == len(rollout.scores.total) == 16  # greedy completions don't count
    assert len(samples) == 16  # nor stand in tables
    for i, prompt in enumerate(PROMPTS):
        alone = module.generate(
            prompt_batch(tiny_model_dir, [prompt]), Sampling(5, temperature=0.0), "greedy", 1
        )
        tokens, mask = alone[0].completions.tokens[0], alone[0].response_mask[0]
        share = float((tokens[mask] % 2 == 0).float().mean())
        mean, std = reward.moments()
        score = (share - mean) / std - (0.0 if alone[0].completions.finished[0] else 0.25)
        assert baselines[2 * i : 2 * i + 2].tolist() == pytest.approx([score] * 2, abs=1e-5)
    to_go = module.shape_rewards(rollout).flip(-1).cumsum(-1).flip(-1)
    expected = torch.where(rollout.response_mask, to_go - baselines[:, None], 0.0)
    torch.testing.assert_close(rollout.advantages, expected, **FP32)


# -- REBEL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [2, 3])
def test_relative_rewards_are_compared_pair_by_pair(num_samples: int) -> None:
    mask = ragged_mask((2, 3, 1, 3, 0, 2))
    new, old, rewards = (ragged(mask, seed=seed, garbage=float("nan")) for seed in range(3))
    loss = relative_reward_loss(new, old, rewards, mask, num_samples, eta=0.4)
    for group in range(6 // num_samples):
        rows = range(group * num_samples, (group + 1) * num_samples)
        moved = {
            i: float((new[i] - old[i])[mask[i]].sum()) / 0.4 - float(rewards[i][mask[i]].sum())
            for i in rows
        }
        full = [i for i in rows if mask[i].any()]  # one without tokens is in no pair
        pairs = [(moved[i] - moved[j]) ** 2 for i in full for j in full if i < j]
        wanted = sum(pairs) / len(pairs) if pairs else 0.0
        assert float(loss[full].mean()) == pytest.approx(wanted, rel=1e-9)
        assert not loss[[i for i in rows if i not in full]].any()
    if num_samples == 2:
        torch.testing.assert_close(loss[0::2], loss[1::2], **FP64)


def test_rebel_fits_differences_of_rewards(tiny_model_dir: Path) -> None:
    def error(epochs: int) -> float:
        module = REBELPolicyModule(
            ModelSpec(name=str(tiny_model_dir)),
            TokenReward(),
            sampling=SHORT,
            updates=Updates(epochs=epochs, max_grad_norm=0.3),
        )
        module = build(module)
        batch = prompt_batch(tiny_model_dir)
        rollout = module.estimate(module.collect(batch)[0])
        iterate(module, batch)
        with torch.no_grad():
            return float(module.loss(rollout).loss.sum(-1).mean())

    assert error(20) < 0.7 * error(1)


@pytest.mark.parametrize(
    ("option", "value"), [("reduction", TokenMean()), ("importance_correction", None)]
)
def test_rebel_takes_no_options_that_it_has_no_use_for(
    tiny_model_dir: Path, option: str, value: object
) -> None:
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{option}'"):
        REBELPolicyModule(ModelSpec(name=str(tiny_model_dir)), TokenReward(), **{option: value})  # type: ignore[arg-type]


# -- DAPO --------------------------------------------------------------------------------------------------------------


def _score(prompts: list[str], responses: list[str], even: list[bool]) -> list[float]:
    """The same for all samples of the prompts that are marked; else a number of each text."""
    scores = [float(sum(map(ord, text)) % 7) for text in responses]
    return [1.0 if flat else score for flat, score in zip(even, scores, strict=True)]


def _pool(model_dir: Path, even: list[bool]) -> PromptBatch:
    return {**prompt_batch(model_dir, PROMPTS[: len(even)]), "columns": {"even": even}}


def _dapo(model_dir: Path, **options: Any) -> DAPOPolicyModule:
    given: dict[str, Any] = {"sampling": SHORT, "num_samples": 3} | options
    return DAPOPolicyModule(ModelSpec(name=str(model_dir)), FunctionReward(_score), **given)


def _prompts_of(rollout: ScoredRollout, batch: PromptBatch) -> list[int]:
    rows = [
        ids[mask].tolist()
        for ids, mask in zip(rollout.prompts.ids, rollout.prompts.mask, strict=True)
    ]
    pool = [
        ids[branch == 0].tolist()
        for ids, branch in zip(batch["input_ids"], batch["branch_ids"], strict=True)
    ]
    return [pool.index(row) for row in rows]


def test_prompts_with_equal_scores_are_replaced_by_the_next_ones(tiny_model_dir: Path) -> None:
    batch = _pool(tiny_model_dir, [True, False, True, True, False, False])
    module = build(_dapo(tiny_model_dir))
    rollout, _ = module.collect(batch)
    assert _prompts_of(rollout, batch) == [1, 4]
    # Each completion is the one that the prompt has in any batch.
    whole, _ = module.sample(batch, module.sampling, "rollout", 3)
    width = rollout.response_mask.shape[1]
    torch.testing.assert_close(
        rollout.completions.tokens[:3], whole.completions.tokens[3:6, :width]
    )
    torch.testing.assert_close(rollout.scores.total[3:], whole.scores.total[12:15])
    logged = iterate(build(_dapo(tiny_model_dir)), batch)
    assert logged["train/sampling/prompts"] == 5  # two at first, then one for each that is lacking
    assert logged["train/sampling/resampled_prompts"] == 3
    assert logged["train/frac_reward_zero_std"] == pytest.approx(3 / 5)
    assert logged["train/sampling/unfilled_prompts"] == 0
    assert logged["train/objective/scores"] == pytest.approx(float(rollout.scores.total.mean()))
    assert logged["train/sampling/scores"] == pytest.approx(float(whole.scores.total[:15].mean()))


def test_a_pool_that_is_used_up_ends_the_search(tiny_model_dir: Path) -> None:
    batch = _pool(tiny_model_dir, [True, True, True, True, True, False])
    module = build(_dapo(tiny_model_dir))
    assert _prompts_of(module.collect(batch)[0], batch) == [0, 5]
    hopeless = build(_dapo(tiny_model_dir, overlong_penalty=0.0))
    before = [p.detach().clone() for p in hopeless.parameters()]
    logged = iterate(hopeless, _pool(tiny_model_dir, [True] * 6))
    assert logged["train/sampling/unfilled_prompts"] == 2
    assert logged["train/frac_reward_zero_std"] == 1.0
    assert all(torch.equal(p, old) for p, old in zip(hopeless.parameters(), before, strict=True))


def test_without_oversampling_every_prompt_is_trained_on(tiny_model_dir: Path) -> None:
    batch = _pool(tiny_model_dir, [True, False, True])
    assert _prompts_of(build(_dapo(tiny_model_dir, oversampling=1)).collect(batch)[0], batch) == [
        0,
        1,
        2,
    ]


class Ranks:
    """Collectives of processes that are threads: each waits until all have given their part."""

    def __init__(self, number: int) -> None:
        self.parts: list[Tensor | None] = [None] * number
        self.number = threading.local()
        self.barrier = threading.Barrier(number, timeout=60)

    def gather(self, rank: int, value: Tensor) -> Tensor:
        self.parts[rank] = value
        self.barrier.wait()
        together = torch.stack([part for part in self.parts if part is not None])
        self.barrier.wait()
        return together

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For `lit_rlhf.distributed`, where threads have said their number."""
        functions = {
            "num_ranks": lambda: len(self.parts),
            "rank": lambda: self.number.rank,
            "sum_over_ranks": lambda value: self.gather(self.number.rank, value).sum(0),
            "stack_over_ranks": lambda value: self.gather(self.number.rank, value),
        }
        for module in (dapo, minibatches, policy):
            for name, function in functions.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, function)


def test_the_selection_does_not_depend_on_the_number_of_processes(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = [True, True, True, False, False, True, False, False]
    batch = _pool(tiny_model_dir, even)
    alone, _ = build(_dapo(tiny_model_dir, oversampling=2)).collect(batch)
    assert _prompts_of(alone, batch) == [3, 4, 6, 7]
    ranks, found = Ranks(2), {}
    ranks.stand_in(monkeypatch)

    def work(rank: int) -> None:
        module = build(_dapo(tiny_model_dir, oversampling=2))
        ranks.number.rank = rank
        part = select_prompts(batch, slice(rank, None, 2))  # as the sampler deals them
        found[rank] = module.collect(part)[0]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(2):
        for name in ("prompts", "completions", "scores"):
            theirs, ours = vars(getattr(found[rank], name)), vars(getattr(alone, name))
            for key in set(ours) - {"parts", "logprobs", "values"}:
                torch.testing.assert_close(theirs[key], ours[key])
        torch.testing.assert_close(found[rank].ref_logprobs, alone.ref_logprobs, **FP32)


def test_long_completions_pay(tiny_model_dir: Path) -> None:
    module = build(
        _dapo(
            tiny_model_dir,
            sampling=Sampling(max_new_tokens=10),
            overlong_buffer=4,
            overlong_penalty=2.0,
        )
    )
    rollout, _ = module.sample(_pool(tiny_model_dir, [False] * 3), module.sampling, "rollout", 3)
    lengths = rollout.response_mask.sum(-1)
    assert len(set(lengths.tolist())) > 1
    expected = rollout.scores.total - 2.0 * ((lengths - 6).clamp_min(0) / 4)
    torch.testing.assert_close(module.penalized_scores(rollout), expected, **FP32)
    assert _dapo(tiny_model_dir, sampling=Sampling(max_new_tokens=20480)).overlong_buffer == 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oversampling": 0}, "oversampling=0"),
        ({"overlong_penalty": -1.0}, r"overlong_penalty=-1\.0"),
        ({"overlong_buffer": 6}, "overlong_buffer=6.* must be from 1 to max_new_tokens=5"),
        (
            {"overlong_buffer": 3, "overlong_penalty": 0.0},
            "overlong_buffer=3 is where a penalty of overlong_penalty=0",
        ),
        ({"num_samples": 1}, "num_samples of at least 2"),
    ],
)
def test_bad_options_of_dapo_are_refused(
    tiny_model_dir: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _dapo(tiny_model_dir, **options)


def test_a_pool_that_cannot_be_divided_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"batch of 4 prompts per process.*oversampling=3.*data.batch_size"
    ):
        build(_dapo(tiny_model_dir)).collect(_pool(tiny_model_dir, [False] * 4))
