"""Reward functions as TRL's users have them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.data import PromptDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import GRPOPolicyModule
from lit_rlhf.rewards import FunctionReward, WeightedSum
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import CHAT_TEMPLATE, make_tokenizer, write_tiny_model
from lit_rlhf.types import Completions
from tests.reference.completions import make_completions

ASKED = [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "2 + 2?"}]


def completions(given: list[Any] | None = None, **columns: list[Any]) -> Completions:
    made = make_completions(make_tokenizer(), ["one ", "two "], ["a", "bb", "ccc", "d"], **columns)
    return replace(made, given=given)


def test_of_text_it_is_given_text() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts, completions, completion_ids, answer, **kwargs):
        seen.update(prompts=prompts, completions=completions, kwargs=sorted(kwargs))
        assert [len(ids) for ids in completion_ids] == [2, 3, 4, 2]  # EOS counts
        return [float(len(text) == n) for text, n in zip(completions, answer, strict=True)]

    found = completions(["one", "one", "two", "two"], answer=[1, 1, 3, 3], more=[0] * 4)
    assert FunctionReward(reward).score(found).total.tolist() == [1, 0, 1, 0]
    assert seen["prompts"] == ["one", "one", "two", "two"]
    assert seen["completions"] == ["a", "bb", "ccc", "d"]
    assert seen["kwargs"] == ["more", "responses"]


def test_of_messages_it_is_given_messages_and_what_the_assistant_began_with() -> None:
    begun = [*ASKED, {"role": "assistant", "content": "It is "}]
    seen: dict[str, Any] = {}

    def reward(completions, prompts, **kwargs):
        seen.update(prompts=prompts)
        return [len(messages[0]["content"]) for messages in completions]

    score = FunctionReward(reward).score(completions([ASKED, ASKED, begun, begun]))
    assert score.total.tolist() == [1, 2, 9, 7]
    assert seen["prompts"] == [ASKED] * 4
    assert begun[-1]["content"] == "It is "


def test_a_coroutine_is_run_to_its_end_where_a_loop_runs_already_too() -> None:
    async def reward(completions, **kwargs):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    async def notebook() -> list[float]:
        return FunctionReward(reward).score(completions()).total.tolist()

    assert FunctionReward(reward).score(completions()).total.tolist() == [1, 2, 3, 1]
    assert asyncio.run(notebook()) == [1, 2, 3, 1]


def test_none_says_that_it_does_not_apply() -> None:
    def maths(completions, **kwargs):
        return [None, 1.0, None, 2.0]

    parts = {"maths": FunctionReward(maths), "length": FunctionReward(lambda responses: [1.0] * 4)}
    assert WeightedSum(parts).score(completions()).total.tolist() == [1, 2, 1, 3]


@pytest.mark.parametrize("waits", [False, True])
def test_a_call_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    calls: list[int] = []

    def plain(completions, **kwargs):
        calls.append(1)
        if len(calls) < 3:
            raise TimeoutError("no route")
        return [1.0] * 4

    async def coroutine(completions, **kwargs):
        return plain(completions)

    reward = coroutine if waits else plain

    assert FunctionReward(reward, retries=2).score(completions()).total.tolist() == [1.0] * 4
    calls.clear()
    with pytest.raises(TimeoutError, match="no route"):
        FunctionReward(reward, retries=1).score(completions())
    assert len(calls) == 2
    with pytest.raises(ConfigurationError, match="retries"):
        FunctionReward(reward, retries=-1)


def test_messages_come_as_the_data_set_has_them_by_the_data_module_and_the_policy(
    tmp_path: Path,
) -> None:
    model = write_tiny_model(tmp_path / "model")
    seen: list[Any] = []

    def reward(prompts, completions, topic, **kwargs):
        seen.extend(zip(prompts, topic, strict=True))
        assert all(messages[0]["role"] == "assistant" for messages in completions)
        return [0.0] * len(completions)

    actor = GRPOPolicyModule(
        ModelSpec(name=str(model)),
        FunctionReward(reward),
        num_samples=2,
        sampling=Sampling(max_new_tokens=4),
    )
    actor.configure_model()
    actor.backbone.tokenizer.chat_template = CHAT_TEMPLATE
    rows = [{"prompt": ASKED, "topic": "sums"}, {"prompt": ASKED[1:], "topic": "more"}]
    data = PromptDataModule(
        train=RowsSource(rows),
        tokenizer=actor.backbone.tokenizer,
        batch_size=2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    actor.sample(batch, actor.sampling, "rollout", 2)
    expected = [(row["prompt"], row["topic"]) for row in rows for _ in range(2)]
    assert sorted(seen, key=str) == sorted(expected, key=str)
