import copy
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.http import Endpoint
from lit_rlhf.judges import EndpointJudge, LocalJudge
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import GRPOPolicyModule, OnlineDPOPolicyModule, PolicyModule
from lit_rlhf.objectives import SoftLabels
from lit_rlhf.rewards import JudgeReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import make_tokenizer, write_tiny_model
from lit_rlhf.types import Completions
from tests.loopback import Answer, Loopback, Request, serving
from tests.reference.completions import make_completions
from tests.tolerances import FP32
from tests.unit.modules.policies import fit
from tests.walks import walk

WORTH = {"a": 2.0, "b": 0.5, "c": -1.0, "d": 0.0}
PAIR = "{{ prompt }}|{{ first }}|{{ second }}"
ONE = "{{ prompt }}|{{ response }}"


def weigh(request: Request) -> Answer:
    """A rater whose preferences follow a Bradley-Terry model, and who favors the first place by a factor e."""
    *_, first, second = request.body["messages"][-1]["content"].split("|")
    margin = sum(WORTH.get(x, 0) for x in first) - sum(WORTH.get(x, 0) for x in second)
    top = [{"token": "A", "logprob": _log_sigmoid(margin)}]
    top.append({"token": "B", "logprob": _log_sigmoid(-margin)})
    return Answer({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})


def rate(request: Request) -> Answer:
    """Counts letters a up to 4; has nothing to say on x."""
    text = request.body["messages"][-1]["content"].rpartition("|")[2]
    said = "no idea" if "x" in text else str(1 + min(text.count("a"), 4))
    return Answer({"choices": [{"message": {"content": said}}]})


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def judge(server: Loopback, **options: Any) -> EndpointJudge:
    return EndpointJudge(Endpoint(server.url, retries=0), "m", **options)


def completions(responses: list[str]) -> Completions:
    return make_completions(make_tokenizer(), ["one ", "two "], responses)


def test_scores_of_pairs_give_the_rewards_behind_the_preferences_back() -> None:
    with serving(weigh) as server:
        reward = JudgeReward(judge(server, template=PAIR), clip=1e-6)
        scores = reward.score(completions(["a", "b", "c", "a", "d", "d"])).total
        assert (
            len(server.requests) == 6 + 2
        )  # both orders; equal answers are a tie unasked, equal pairs asked once
    worth = torch.tensor([[2.0, 0.5, -1.0], [2.0, 0.0, 0.0]])
    wanted = (worth - worth.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(scores, wanted, **FP32)


def test_soft_labels_of_its_scores_are_what_the_judge_said() -> None:
    with serving(weigh) as server:
        reward = JudgeReward(judge(server, template=PAIR), clip=1e-6)
        scores = reward.score(completions(["a", "b", "c", "d"])).total.view(2, 2)
    wins = SoftLabels()(scores[:, 0] - scores[:, 1], torch.zeros(2))
    torch.testing.assert_close(wins, torch.tensor([1.5, -1.0]).sigmoid(), **FP32)


def test_a_verdict_beyond_doubt_stays_finite() -> None:
    sure = {"token": "A", "logprob": 0.0}, {"token": "B", "logprob": -1e9}

    def answer(request: Request) -> Answer:
        first = request.body["messages"][-1]["content"].split("|")[1]
        top = sure[0 if first == "a" else 1]["token"]
        said = [{"token": top, "logprob": 0.0}]
        return Answer({"choices": [{"logprobs": {"content": [{"top_logprobs": said}]}}]})

    with serving(answer) as server:
        scores = JudgeReward(judge(server, template=PAIR)).score(completions(["a", "b"] * 2)).total
    torch.testing.assert_close(scores, torch.tensor([1.0, -1.0] * 2) * math.log(99) / 2, **FP32)


def test_single_answers_get_their_worth_and_those_without_verdict_the_mean() -> None:
    with serving(rate) as server:
        options = {"template": ONE, "mode": "text", "failures": "null"}
        reward = JudgeReward(judge(server, **options))
        found = reward.score(completions(["a", "x", "aaa", "x", "x", "x"])).total.tolist()
        assert found == [2, 3, 4, 3, 3, 3]
        with pytest.raises(DataError, match=r"no verdict on any of 4 completions"):
            reward.score(completions(["x"] * 4))


def test_those_without_verdict_may_be_left_out() -> None:
    with serving(rate) as server:
        one = judge(server, template=ONE, mode="text", failures="null")
        found = JudgeReward(one, no_verdict="skip").score(completions(["a", "x", "aaa", "x"]))
        assert found.left_out.tolist() == [False, True, False, True]
        assert found.total.tolist() == [2, 2, 4, 4]
        with pytest.raises(ConfigurationError, match=r"mean or skip"):
            JudgeReward(one, no_verdict="raise")  # type: ignore[arg-type]


def test_pairs_without_verdict_say_nothing_of_the_others() -> None:
    def answer(request: Request) -> Answer:
        return Answer("no verdict", 400) if "x" in str(request.body["messages"]) else weigh(request)

    with serving(answer) as server:
        pairs = judge(server, template=PAIR, failures="null")
        texts = ["a", "b", "x", "c", "a", "d"]
        found = JudgeReward(pairs, 1e-6, "skip").score(completions(texts))
        assert found.left_out.tolist() == [False, False, True, False, False, False]
        worth = torch.tensor([2.0, 0.5])
        wanted = worth - worth.mean()
        torch.testing.assert_close(found.total[:2], wanted, **FP32)
        torch.testing.assert_close(found.total[2], torch.tensor(0.0), **FP32)
        tied = JudgeReward(pairs, 1e-6).score(completions(texts)).total
        torch.testing.assert_close(tied[:2], wanted * 2 / 3, **FP32)


def test_prompts_are_read_as_they_were_given() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    with serving(rate) as server:
        given = replace(completions(["a", "b"]), given=[turns, "as text"])
        JudgeReward(judge(server, template=ONE, mode="text")).score(given)
    said = sorted(request.body["messages"][0]["content"] for request in server.requests)
    assert said == ["as text|b", "system: Be brief.\n\nuser: 2 + 2?|a"]


def test_what_it_cannot_score_is_refused() -> None:
    with serving(weigh) as server:
        with pytest.raises(ConfigurationError, match=r"Set num_samples to 2 or more"):
            JudgeReward(judge(server, template=PAIR)).score(completions(["a", "b"]))
        for clip in (0.0, 0.5, math.nan):
            with pytest.raises(ConfigurationError, match=r"clip must be above 0 and below 1/2"):
                JudgeReward(judge(server), clip=clip)


def test_it_is_copied_and_sent_to_processes() -> None:
    reward = JudgeReward(EndpointJudge(Endpoint("http://127.0.0.1:1"), "m"))
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert twin.judge.identity() == reward.judge.identity()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("judged") / "model", seed=0)


@pytest.mark.parametrize("kind", walk([GRPOPolicyModule, OnlineDPOPolicyModule], GRPOPolicyModule))
@pytest.mark.parametrize("who", ["server", "own", "itself"])
def test_policies_learn_from_it(model: Path, kind: type[PolicyModule], who: str) -> None:
    spec = ModelSpec(name=str(model))
    with serving(weigh) as server:
        judges = {
            "server": lambda: judge(server, template=PAIR),
            "own": lambda: LocalJudge(spec, template=PAIR),
            "itself": lambda: LocalJudge(template=ONE, words={"good": 1.0, "bad": 0.0}),
        }
        reward = JudgeReward(judges[who]())
        module = kind(
            spec,
            reward,
            num_samples=2,
            sampling=Sampling(max_new_tokens=4),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        )
        fit(module, model)
    assert reward.judge.tally.asked > 0
    assert not any(name.startswith("reward.") for name in module.state_dict())
    if who == "itself":
        assert reward.judge.model is module.backbone
