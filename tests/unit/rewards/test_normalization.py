import statistics
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rewards import FunctionReward, NormalizedReward, WeightedSum
from lit_rlhf.testing import make_tokenizer
from tests.reference.completions import make_completions
from tests.tolerances import FP32


def score(
    reward: NormalizedReward | WeightedSum, source: list[float], values: Sequence[float]
) -> Tensor:
    source[:] = values
    return reward.score(make_completions(make_tokenizer(), ["p "], ["r"] * len(values))).total


def running(**options: float | bool | None) -> tuple[NormalizedReward, list[float]]:
    source: list[float] = []
    return NormalizedReward(FunctionReward(lambda **_: source), **options), source  # type: ignore[arg-type]


BATCHES = ([1.0, 4.0, 2.0], [10.0, -3.0], [5.0, 5.0, 5.0, 6.0])


def test_running_moments_are_those_of_all_scores_seen() -> None:
    reward, source = running()
    seen: list[float] = []
    for batch in BATCHES:
        found = score(reward, source, batch)
        seen += batch
        mean, std = statistics.fmean(seen), statistics.pstdev(seen)
        wanted = torch.tensor([(value - mean) / std for value in batch])
        torch.testing.assert_close(found, wanted, **FP32)
    reward.eval()
    completions = make_completions(make_tokenizer(), ["p "], ["r"] * len(source))
    assert reward.score(completions).parts["raw"].tolist() == source


def test_scores_seen_in_eval_mode_are_not_counted() -> None:
    reward, source = running()
    score(reward, source, BATCHES[0])
    before = reward.moments()
    reward.eval()
    score(reward, source, [100.0, 200.0])
    assert reward.moments() == before
    reward.train()
    score(reward, source, [100.0, 200.0])
    assert reward.moments() != before


def test_fixed_moments_stay_and_no_state_is_kept() -> None:
    source: list[float] = []
    reward = NormalizedReward(FunctionReward(lambda **_: source), mean=2.0, std=4.0)
    assert score(reward, source, [2.0, 6.0, -2.0]).tolist() == [0, 1, -1]
    assert score(reward, source, [10.0]).tolist() == [2]
    assert not reward.state_dict()


def test_clipping_comes_last_and_centering_can_be_left_out() -> None:
    source: list[float] = []
    reward = NormalizedReward(
        FunctionReward(lambda **_: source), mean=2.0, std=4.0, center=False, clip=1.5
    )
    assert score(reward, source, [2.0, 8.0, -20.0]).tolist() == [0.5, 1.5, -1.5]


def test_one_score_or_equal_scores_are_not_blown_up() -> None:
    reward, source = running()
    assert score(reward, source, [3.0]).tolist() == [0]
    assert score(reward, source, [3.0, 3.0]).tolist() == [0, 0]
    reward, source = running()
    reward.eval()
    assert score(reward, source, [3.0, -1.0]).tolist() == [3, -1]  # nothing counted yet


def test_a_large_offset_loses_no_precision() -> None:
    reward, source = running()
    for start in range(0, 1000, 10):
        score(reward, source, [1e6 + (start + i) % 7 for i in range(10)])
    exact = [1e6 + i % 7 for i in range(1000)]
    assert reward.moments() == pytest.approx(
        (statistics.fmean(exact), statistics.pstdev(exact)), rel=1e-9
    )


def test_running_state_goes_through_a_checkpoint_however_deep_it_lies() -> None:
    def build() -> tuple[WeightedSum, list[float]]:
        inner, source = running()
        plain: FunctionReward = FunctionReward(lambda responses: [0.0] * len(responses))
        return WeightedSum({"plain": plain, "normal": inner}), source

    reward, source = build()
    score(reward, source, BATCHES[0])
    state = reward.state_dict()
    assert list(state) == ["rewards.1.counted"]
    again, other = build()
    again.load_state_dict(state)
    assert torch.equal(score(reward, source, BATCHES[1]), score(again, other, BATCHES[1]))
    fresh, third = build()
    assert not torch.equal(score(again, other, BATCHES[2]), score(fresh, third, BATCHES[2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": 1.0}, "mean=1.0 and std=None: give both"),
        ({"std": 1.0}, "mean=None and std=1.0: give both"),
        ({"mean": 0.0, "std": 0.0}, "std must be above 0"),
        ({"clip": -1.0}, "clip must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        running(**options)
