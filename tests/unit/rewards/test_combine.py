import pytest
import torch
from jsonargparse import ArgumentParser

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.rewards import (
    EnsembleMean,
    EnsembleUncertainty,
    EnsembleWorst,
    FunctionReward,
    LengthReward,
    MonitoredReward,
    PatternReward,
    Reward,
    WeightedSum,
)
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import Completions
from tests.reference.completions import make_completions
from tests.tolerances import FP32


def fixed(*values: float) -> FunctionReward:
    return FunctionReward(lambda **_: values)


def completions() -> Completions:
    return make_completions(make_tokenizer(), ["one "], ["a", "bb", "ccc"])


def test_a_weighted_sum_adds_up_and_keeps_the_parts_before_weighting() -> None:
    reward = WeightedSum({"good": fixed(1, 2, 3), "short": fixed(-4, 0, 2)}, {"short": 0.5})
    assert reward.score(completions()).total.tolist() == [-1, 2, 4]
    assert {name: part.tolist() for name, part in reward.score(completions()).parts.items()} == {
        "good": [1, 2, 3],
        "short": [-4, 0, 2],
    }


def test_parts_of_parts_are_found_under_both_names() -> None:
    inner = WeightedSum({"a": fixed(1, 1, 1), "b": fixed(2, 2, 2)})
    reward = WeightedSum({"inner": inner, "c": fixed(0, 0, 0)}, {"inner": 10})
    assert reward.score(completions()).total.tolist() == [30, 30, 30]
    assert list(reward.score(completions()).parts) == ["inner", "inner/a", "inner/b", "c"]


MEMBERS = ((1.0, 0.0, 5.0), (3.0, 0.0, -5.0), (2.0, 3.0, 0.0))


def members() -> list[Reward]:
    return [fixed(*values) for values in MEMBERS]


def test_ensembles_take_the_mean_the_worst_or_the_mean_less_the_variance() -> None:
    assert EnsembleMean(members()).score(completions()).total.tolist() == [2, 1, 0]
    assert EnsembleWorst(members()).score(completions()).total.tolist() == [1, 0, -5]
    wanted = []
    for column in zip(*MEMBERS, strict=True):
        mean = sum(column) / 3
        wanted.append(mean - 0.5 * sum((value - mean) ** 2 for value in column) / 3)
    found = EnsembleUncertainty(members(), coefficient=0.5).score(completions()).total
    torch.testing.assert_close(found, torch.tensor(wanted), **FP32)


def test_an_ensemble_tells_its_members_and_how_far_they_disagree() -> None:
    reward = EnsembleWorst(members())
    reward.score(completions())
    assert list(reward.score(completions()).parts) == ["0", "1", "2", "std"]
    wanted = torch.tensor([(2 / 3) ** 0.5, 2**0.5, (50 / 3) ** 0.5])
    torch.testing.assert_close(reward.score(completions()).parts["std"], wanted, **FP32)


def test_what_makes_no_combination_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"WeightedSum.rewards is empty"):
        WeightedSum({})
    with pytest.raises(
        ConfigurationError, match=r"weights names \['lenght'\]; the rewards are \['length'\]"
    ):
        WeightedSum({"length": fixed(1)}, {"lenght": 1.0})
    with pytest.raises(ConfigurationError, match=r"EnsembleMean.rewards has 1 members"):
        EnsembleMean([fixed(1)])
    with pytest.raises(ConfigurationError, match=r"coefficient=-1.0.*would reward disagreement"):
        EnsembleUncertainty(members(), coefficient=-1.0)


def test_names_of_parts_may_be_any_text() -> None:
    reward = WeightedSum({"keys": fixed(1, 1, 1), "a.b": fixed(1, 1, 1), "0": fixed(1, 1, 1)})
    assert reward.score(completions()).total.tolist() == [3, 3, 3]


def test_a_combination_is_made_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    length = {"class_path": "lit_rlhf.rewards.LengthReward", "init_args": {"unit": "characters"}}
    pattern = {"class_path": "PatternReward", "init_args": {"pattern": "b+"}}
    function = {
        "class_path": "FunctionReward",
        "init_args": {"function": f"{__name__.rpartition('.')[0]}.nowhere"},
    }
    config = parser.parse_object(
        {
            "reward": {
                "class_path": "lit_rlhf.rewards.WeightedSum",
                "init_args": {
                    "rewards": {"length": length, "pattern": pattern},
                    "weights": {"pattern": 10.0},
                },
            }
        }
    )
    reward = parser.instantiate(config).reward
    assert [type(member) for member in reward.members()] == [LengthReward, PatternReward]
    assert reward.score(completions()).total.tolist() == [1, 12, 3]
    with pytest.raises(ConfigurationError, match="There is no function"):
        parser.instantiate(parser.parse_object({"reward": function}))


def test_monitors_watch_and_change_nothing() -> None:
    inner = WeightedSum({"a": fixed(1, 2, 3)})
    reward = MonitoredReward(
        inner, {"gold": fixed(5, 5, -5), "length": LengthReward(scale=-1, unit="characters")}
    )
    assert reward.score(completions()).total.tolist() == [1, 2, 3]
    found = {name: part.tolist() for name, part in reward.score(completions()).parts.items()}
    assert found == {
        "proxy": [1, 2, 3],
        "proxy/a": [1, 2, 3],
        "gold": [5, 5, -5],
        "length": [-1, -2, -3],
    }
    assert len(reward.members()) == 3


@pytest.mark.parametrize("monitors", [{}, {"proxy": LengthReward()}])
def test_monitors_need_names_of_their_own(monitors: dict[str, Reward]) -> None:
    with pytest.raises(ConfigurationError, match=r"monitors=\[.*none of them 'proxy'"):
        MonitoredReward(LengthReward(), monitors)
