import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, DataError, ServiceError
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.testing import make_tokenizer
from lit_rlhf.types import Completions
from tests.reference.completions import make_completions

SOURCE = """
SCALE = 2.0


def long_ones(responses, **columns):
    return [SCALE * len(response) for response in responses]
"""


def completions(**columns: list[Any]) -> Completions:
    return make_completions(
        make_tokenizer(), ["one ", "two "], ["a", "bb", "ccc", "dddd"], **columns
    )


def test_a_function_is_given_prompts_responses_and_the_columns_it_names() -> None:
    seen: dict[str, Any] = {}

    def reward(
        responses: list[str], topic: list[str], prompts: list[str], absent: int = 3
    ) -> list[float]:
        seen.update(responses=responses, topic=topic, prompts=prompts, absent=absent)
        return [float(len(response)) for response in responses]

    scores = FunctionReward(reward).score(completions(topic=["x"] * 4, unused=[0] * 4)).total
    assert scores.tolist() == [1, 2, 3, 4]
    assert scores.dtype == torch.float32
    assert seen == {
        "responses": ["a", "bb", "ccc", "dddd"],
        "topic": ["x"] * 4,
        "prompts": ["one ", "one ", "two ", "two "],
        "absent": 3,
    }


def test_a_function_with_keyword_arguments_is_given_all_columns() -> None:
    reward = FunctionReward(lambda **given: [float(len(given))] * 4)
    assert reward.score(completions(a=[1] * 4, b=[2] * 4)).total.tolist() == [4.0] * 4


@pytest.mark.parametrize(
    "kind", [list, tuple, torch.tensor, lambda values: torch.tensor(values).numpy()]
)
def test_lists_tuples_tensors_and_arrays_are_taken(kind: Callable[[list[float]], Any]) -> None:
    values = [1.0, -2.5, 0.0, 3.0]
    assert FunctionReward(lambda **_: kind(values)).score(completions()).total.tolist() == values


def test_booleans_count_as_one_and_zero() -> None:
    reward = FunctionReward(lambda responses: [len(response) > 2 for response in responses])
    assert reward.score(completions()).total.tolist() == [0, 0, 1, 1]


def test_a_function_is_found_by_import_path_and_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my_reward_functions.py"
    file.write_text(SOURCE, encoding="utf-8")
    assert FunctionReward(f"{file}:long_ones").score(completions()).total.tolist() == [2, 4, 6, 8]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert FunctionReward("my_reward_functions.long_ones").score(completions()).total.tolist() == [
        2,
        4,
        6,
        8,
    ]
    assert FunctionReward("my_reward_functions:long_ones").score(completions()).total.tolist() == [
        2,
        4,
        6,
        8,
    ]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "no_such_package.reward",
            "There is no function 'no_such_package.reward': No module named",
        ),
        ("math.no_such_function", "no attribute 'no_such_function'"),
        ("math.pi", "'math.pi' is a float, not a function"),
        ("nowhere/rewards.py:score", "There is no file 'nowhere/rewards.py'"),
        ("score", "There is no function 'score'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_the_cause(where: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FunctionReward(where)


def test_a_column_that_is_missing_is_named() -> None:
    def reward(responses: list[str], answer: list[str]) -> list[float]:
        return [0.0] * len(responses + answer)

    with pytest.raises(
        ConfigurationError, match=r"'reward' wants \['answer'\], .* columns \['topic'\]"
    ):
        FunctionReward(reward).score(completions(topic=["x"] * 4))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], r"'mine' returned 2 values \(list\) for 4 responses"),
        (None, r"'mine' returned None \(NoneType\)"),
        (1.0, r"'mine' returned 1.0 \(float\)"),
        ("good", r"'mine' returned 'good' \(str\)"),
        (
            [0.0, 1.0, math.nan, 2.0],
            r"'mine' returned nan for response 2, 'ccc', to the prompt 'two '",
        ),
        ([0.0, math.inf, 0.0, 2.0], r"'mine' returned inf for response 1, 'bb'"),
        ([[0.0], [1.0], [2.0], [3.0]], r"'mine' returned \[0.0\] for response 0"),
    ],
)
def test_what_is_no_list_of_finite_numbers_is_refused_by_name(returned: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FunctionReward(lambda **_: returned, name="mine").score(completions())


def test_an_error_in_the_function_says_which_function_it_was() -> None:
    def fragile(responses: list[str]) -> list[float]:
        raise KeyError("key")

    with pytest.raises(KeyError) as caught:
        FunctionReward(fragile).score(completions())
    assert caught.value.__notes__ == ["Raised by the reward function 'fragile'."]


def test_nan_says_that_a_response_could_not_be_scored() -> None:
    def some(responses: list[str]) -> list[float]:
        return [math.nan if text == "x" else float(len(text)) for text in responses]

    given = make_completions(make_tokenizer(), ["one ", "two "], ["a", "x", "aaa", "a"])
    with pytest.raises(DataError, match="must be a finite number"):
        FunctionReward(some).score(given)
    mean = FunctionReward(some, on_failure="mean").score(given)
    assert mean.total.tolist() == [1, 1, 3, 1] and not mean.left_out.any()
    skip = FunctionReward(some, on_failure="skip").score(given)
    assert skip.left_out.tolist() == [False, True, False, False]
    nothing = make_completions(make_tokenizer(), ["one "], ["x", "x"])
    with pytest.raises(ServiceError, match="None of 2 completions"):
        FunctionReward(some, on_failure="skip").score(nothing)
    endless = FunctionReward(lambda responses: [math.inf] * 4, on_failure="skip")
    with pytest.raises(DataError, match="must be a finite number"):
        endless.score(given)


def test_a_file_may_hold_dataclasses(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Told:\n    scale: float = 2.0\n\n\n"
        "def score(responses):\n    return [Told().scale for _ in responses]\n"
    )
    scores = FunctionReward(f"{file}:score").score(completions())
    assert scores.total.tolist() == [2.0] * 4


class ByLength(torch.nn.Module):
    """A network as reward function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, responses: list[str]) -> torch.Tensor:
        return self.layer(torch.tensor([[float(len(text))] for text in responses]))[:, 0]


def test_a_module_is_given_what_its_forward_names() -> None:
    network = ByLength()
    completions = make_completions(make_tokenizer(), ["one "], ["a", "bbb"])
    found = FunctionReward(network).score(completions)
    assert found.total.tolist() == network(["a", "bbb"]).tolist()


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"FunctionReward\(function=3\): .* a function"):
        FunctionReward(3)
