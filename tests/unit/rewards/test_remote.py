"""Reward servers, each a process of its own, and the reward that asks them."""

import logging
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from lit_rlhf.cli.serve_reward import serve_reward
from lit_rlhf.errors import CheckpointError, ConfigurationError, ServiceError
from lit_rlhf.http import Endpoint, HTTPClient
from lit_rlhf.models import Backbone, ModelSpec, export_reward, load_reward_model
from lit_rlhf.modules import PPOPolicyModule
from lit_rlhf.rewards import HTTPReward, ModelReward
from lit_rlhf.rewards.retokenize import vocabulary_hash
from lit_rlhf.rewards.serving import Item, RewardService, create_app
from lit_rlhf.rollout import Sampling
from tests import warm
from tests.loopback import Answer, Request, serving
from tests.reference.completions import make_completions
from tests.tolerances import FP32_MODEL
from tests.unit.callbacks.standins import quiet_trainer
from tests.unit.modules.policies import prompt_loader

PROMPTS = ["how was it? ", "the other film, then: ", "and the end? "]
RESPONSES = ["good", "the best in years", "bad, thin", "in there", "so so", "worse than that"]
KEY = "LIT_RLHF_TEST_KEY"


def export(model: Path, path: Path, seed: int = 5) -> Path:
    backbone = Backbone.load(ModelSpec(name=str(model)), lm_head=False)
    backbone.add_head("reward")
    weight = backbone.heads["reward"].weight
    weight.data.normal_(generator=torch.Generator().manual_seed(seed))
    export_reward(backbone, path, merge=True, score_mean=0.25, score_std=2.0)
    return path


class Served:
    """`lit-rlhf serve-reward` as a process of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        command = [warm.python(), "-m", "lit_rlhf", "serve-reward", "--path", str(path)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"at (http://\S+)/score", said)
        assert found, said
        self.url = found[1]

    def end(self, number: int = signal.SIGINT) -> int:
        assert self.process.stdout is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def reward_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_model_dir, tmp_path_factory.mktemp("reward") / "reward")


@pytest.fixture(scope="module")
def url(reward_dir: Path) -> Iterator[str]:
    server = Served(reward_dir)
    yield server.url
    assert server.end() == 0


@pytest.fixture(scope="module")
def policy(tiny_model_dir: Path) -> Backbone:
    return Backbone.load(ModelSpec(name=str(tiny_model_dir)))


@pytest.mark.parametrize("normalize", [False, True])
def test_scores_are_those_in_the_process(
    reward_dir: Path, url: str, policy: Backbone, normalize: bool
) -> None:
    ended = [True, False, True, False, True, True]
    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES, ended)
    inside = ModelReward(str(reward_dir), share_base=False, normalize=normalize)
    outside = HTTPReward(url, normalize=normalize)
    for reward in (inside, outside):
        reward.attach(policy)
    wanted = inside.score(completions).total
    assert len(set(wanted.tolist())) == len(RESPONSES)
    assert torch.equal(outside.score(completions).total, wanted)


def test_another_tokenizer_sends_texts(
    reward_dir: Path, url: str, other_tokenizer_model_dir: Path
) -> None:
    other = Backbone.load(ModelSpec(name=str(other_tokenizer_model_dir)))
    assert vocabulary_hash(other.tokenizer) != httpx.get(f"{url}/health").json()["vocabulary"]
    ended = [True, False, True, False, True, True]
    completions = make_completions(other.tokenizer, PROMPTS, RESPONSES, ended)
    inside, outside = ModelReward(str(reward_dir), share_base=False), HTTPReward(url)
    for reward in (inside, outside):
        reward.attach(other)
    assert torch.equal(outside.score(completions).total, inside.score(completions).total)


def load(url: str, reward_dir: Path, count: int) -> None:
    """Ask from 16 clients at once, every fifth time for nonsense; each answer is of its own request."""
    backbone = load_reward_model(reward_dir)
    tokens = backbone.tokenizer
    texts = [f"{RESPONSES[i % 6]} {i}" for i in range(count)]
    nonsense: list[Any] = [
        b"{",
        b'{"prompts": []}',
        b'{"prompts": [{"prompt": "x"}]}',
        b'{"prompts": [{"prompt_ids": [-1], "completion_ids": [[1]]}]}',
        b'{"prompts": [{"prompt_ids": [1], "completion_ids": [[]]}]}',
        b'{"prompts": [{"prompt": "x", "completions": ["y"], "finished": [1]}]}',
        b'{"prompts": [{"prompt_ids": [1], "completion_ids": [[' + b"1," * 99999 + b"1]]}]}",
    ]

    def ask(i: int) -> Any:
        with_ids = {"prompt_ids": tokens(PROMPTS[0], add_special_tokens=False)["input_ids"]}
        body = tokens(texts[i], add_special_tokens=False)["input_ids"] + [tokens.eos_token_id]
        item = {**with_ids, "completion_ids": [body] * (1 + i % 3)}
        with httpx.Client(timeout=60, trust_env=False) as client:
            if i % 5 == 0:
                return client.post(f"{url}/score", content=nonsense[i // 5 % len(nonsense)])
            return client.post(f"{url}/score", json={"prompts": [item]})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(count)))
    inside = ModelReward(str(reward_dir), share_base=False)
    inside.attach(backbone)
    rest = [i for i in range(count) if i % 5]
    wanted = inside.score(
        make_completions(tokens, [PROMPTS[0]] * len(rest), [texts[i] for i in rest])
    ).total.tolist()
    for i, answer in enumerate(answers):
        if i % 5 == 0:
            assert answer.status_code == 422, answer.text
            assert answer.json()["error"].endswith("."), answer.text
    for i, score in zip(rest, wanted, strict=True):
        assert answers[i].status_code == 200, answers[i].text
        found = torch.tensor(answers[i].json()["scores"][0])
        torch.testing.assert_close(found, torch.full((1 + i % 3,), score), **FP32_MODEL)


def test_no_request_is_lost(url: str, reward_dir: Path) -> None:
    load(url, reward_dir, 100)


@pytest.mark.slow
def test_no_request_of_a_thousand_is_lost(url: str, reward_dir: Path) -> None:
    load(url, reward_dir, 1000)


@pytest.mark.parametrize("status", [500, 404, 401])
def test_a_dead_server_is_left_out_and_asked_again(
    status: int, url: str, policy: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    up = True

    def relay(request: Any) -> Answer:
        if not up:
            return Answer({"error": "down"}, status)
        client = HTTPClient(Endpoint(url))
        get = request.method == "GET"
        return Answer(client.get(request.path) if get else client.post(request.path, request.body))

    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES)
    with serving(relay) as second:
        reward = HTTPReward([second.url, url], prompts_per_request=1, retries=0)
        reward.attach(policy)
        wanted = reward.score(completions).total
        asked = len(second.requests)
        assert asked > 1
        up = False
        with caplog.at_level(logging.WARNING):
            torch.testing.assert_close(reward.score(completions).total, wanted, **FP32_MODEL)
        assert f"{second.url} is left out" in caplog.text
        up = True
        assert reward._servers is not None
        reward._servers.pause = 0.0
        torch.testing.assert_close(reward.score(completions).total, wanted, **FP32_MODEL)
        assert f"{second.url} is back" in caplog.text


def test_what_comes_again_is_remembered(reward_dir: Path, url: str, policy: Backbone) -> None:
    client = HTTPClient(Endpoint(url))

    def relay(request: Any) -> Answer:
        get = request.method == "GET"
        return Answer(client.get(request.path) if get else client.post(request.path, request.body))

    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES)
    with serving(relay) as counted:
        reward = HTTPReward(counted.url, cache=2)
        reward.attach(policy)
        first = reward.score(completions).total
        again = reward.score(completions).total  # a batch of another size
        torch.testing.assert_close(again, first, **FP32_MODEL)
        bodies = [request.body for request in counted.requests if request.method == "POST"]
    assert [len(body["prompts"]) for body in bodies] == [3, 1]


def test_a_request_that_fails_costs_no_other(url: str, policy: Backbone) -> None:
    """The second prompt is one that the server can't answer."""
    client, second = HTTPClient(Endpoint(url)), policy.tokenizer(PROMPTS[1])["input_ids"]
    down = False

    def relay(request: Any) -> Answer:
        if request.method == "GET":
            return Answer(client.get(request.path))
        if down or any(each["prompt_ids"] == second for each in request.body["prompts"]):
            return Answer({"error": "no"}, 500)
        return Answer(client.post(request.path, request.body))

    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES)
    whole = HTTPReward(url)
    whole.attach(policy)
    wanted = whole.score(completions).total
    with serving(relay) as server:
        options: dict[str, Any] = {"prompts_per_request": 1, "retries": 0, "concurrency": 1}
        for on_failure, failed in (
            ("skip", [False, False, True, True, False, False]),
            ("mean", None),
        ):
            reward = HTTPReward(server.url, on_failure=on_failure, **options)  # type: ignore[arg-type]
            reward.attach(policy)
            scores = reward.score(completions)
            assert (None if scores.failed is None else scores.failed.tolist()) == failed
            there = torch.tensor([0, 1, 4, 5])
            torch.testing.assert_close(scores.total[there], wanted[there], **FP32_MODEL)
            mean = wanted[there].mean().expand(2)
            torch.testing.assert_close(scores.total[2:4], mean, **FP32_MODEL)
        down = True
        with pytest.raises(ServiceError, match="HTTP 500"):
            reward.score(completions)
        down = False
        raising = HTTPReward(server.url, **options)
        raising.attach(policy)
        with pytest.raises(ServiceError, match="HTTP 500"):
            raising.score(completions)
    with pytest.raises(ConfigurationError, match="raise, mean or skip"):
        HTTPReward(url, on_failure="pass")  # type: ignore[arg-type]


@contextmanager
def served_here(service: RewardService) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def asked(url: str, number: int, timeout: float = 30.0) -> list[float]:
    body = {"prompts": [{"prompt": "p", "completions": ["a"] * number}]}
    (scores,) = httpx.post(f"{url}/score", json=body, timeout=timeout).json()["scores"]
    return list(scores)


def test_what_nobody_waits_for_any_more_is_not_scored(reward_dir: Path) -> None:
    """Else a server that is slower than its clients wait would work for nobody, and never come to their next try."""
    service = RewardService(load_reward_model(reward_dir).eval(), "slow")
    scored: list[list[int]] = []
    busy, real = threading.Event(), service.score

    def score(items: Sequence[Item]) -> list[list[float]]:
        scored.append([len(item.completions) for item in items])
        busy.wait(30)
        return real(items)

    service.score = score  # type: ignore[method-assign]
    with served_here(service) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(asked, url, 1)
        while not scored:
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            asked(url, 2, timeout=0.5)
        last = pool.submit(asked, url, 3)
        time.sleep(0.5)
        busy.set()
        assert (len(first.result()), len(last.result())) == (1, 3)
    assert scored == [[1], [3]]


def test_a_score_that_is_not_finite_is_said(reward_dir: Path, policy: Backbone) -> None:
    """Once, and in a sentence: asked again it would be no other."""
    service = RewardService(load_reward_model(reward_dir).eval(), "broken")
    service.backbone.heads["reward"].weight.data.fill_(float("nan"))
    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES)
    with served_here(service) as url:
        reward = HTTPReward(url)
        reward.attach(policy)
        with pytest.raises(ServiceError, match=r"HTTP 422.*broken gives \[nan, nan\].*--dtype"):
            reward.score(completions)


def test_wrong_addresses_are_refused(policy: Backbone, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"No reward server answers .*lit-rlhf serve-rew"):
        HTTPReward("http://127.0.0.1:9").attach(policy)
    with pytest.raises(ConfigurationError, match=r"HTTP 404.*Look at the url"):
        HTTPReward(f"{url}/v1").attach(policy)
    with (
        serving(lambda _: Answer({"status": "ok"})) as other,
        pytest.raises(ConfigurationError, match="is no reward server"),
    ):
        HTTPReward(other.url).attach(policy)


def own_server(request: Request) -> Answer:
    """Rules on a server, as the page on reward servers has them."""
    if request.path == "/health":
        return Answer({"weights": "rules 1"})
    prompts = request.body["prompts"]
    return Answer({"scores": [[-float(len(c)) for c in each["completions"]] for each in prompts]})


def test_a_server_of_ones_own_is_asked_for_texts(policy: Backbone) -> None:
    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES, [True] * 6)
    with serving(own_server) as own:
        reward = HTTPReward(own.url)
        reward.attach(policy)
        assert reward.score(completions).total.tolist() == [-float(len(c)) for c in RESPONSES]
        with pytest.raises(ConfigurationError, match=r"normalize=True.*NormalizedReward"):
            HTTPReward(own.url, normalize=True).attach(policy)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"scores": [[1.0]]},
        {"scores": [[1.0]] * 3},
        {"scores": [["a", "b"]] * 3},
        {"scores": [[1.0, float("nan")]] * 3},
    ],
)
def test_an_answer_that_is_no_scores_is_shown(answer: object, policy: Backbone) -> None:
    completions = make_completions(policy.tokenizer, PROMPTS, RESPONSES, [True] * 6)

    def answers(request: Request) -> Answer:
        return own_server(request) if request.path == "/health" else Answer(answer)

    with serving(answers) as own:
        reward = HTTPReward(own.url, retries=0)
        reward.attach(policy)
        with pytest.raises(ServiceError, match=r"each of 3 prompts.*`scores`"):
            reward.score(completions)


def test_servers_of_other_weights_are_refused(policy: Backbone, url: str) -> None:
    health = httpx.get(f"{url}/health").json() | {"weights": "others", "model": "other/reward"}
    with (
        serving(lambda _: Answer(health)) as other,
        pytest.raises(ConfigurationError, match=r"different weights .*other/reward"),
    ):
        HTTPReward([url, other.url]).attach(policy)


def test_a_key_is_asked_for(
    reward_dir: Path, policy: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "right")
    server = Served(reward_dir, "--host", "0.0.0.0", "--api-key-env", KEY)
    try:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        HTTPReward(url, api_key_env=KEY).attach(policy)
        monkeypatch.setenv(KEY, "wrong")
        for name in (KEY, None):
            with pytest.raises(ConfigurationError, match=r"HTTP 401: .*needs its API key"):
                HTTPReward(url, api_key_env=name).attach(policy)
    finally:
        server.end()


def test_another_address_needs_a_key(reward_dir: Path) -> None:
    from lit_rlhf.rewards.serving import RewardService, serve

    service = RewardService(load_reward_model(reward_dir), "reward")
    with pytest.raises(ConfigurationError, match=r"host='0\.0\.0\.0'.*--api-key-env"):
        serve(service, host="0.0.0.0", port=0)
    with pytest.raises(ConfigurationError, match=r"host='0\.0\.0\.0'.*--api-key-env"):
        serve_reward("not/looked/at", host="0.0.0.0")


def test_a_port_in_use_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Can't listen on port {port}.*--port"):
            serve_reward("no model of that name", port=port)


def test_ppo_trains_with_it(url: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    module = PPOPolicyModule(
        ModelSpec(name=str(tiny_model_dir)), HTTPReward(url), sampling=Sampling(max_new_tokens=6)
    )
    trainer = quiet_trainer(tmp_path, [], max_epochs=1, limit_train_batches=2)
    trainer.fit(module, prompt_loader(tiny_model_dir))
    assert module.iteration == 2
    trainer.save_checkpoint(tmp_path / "policy.ckpt", weights_only=False)


def test_a_run_goes_on_by_the_same_weights_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    weights = "rules 1"

    def answer(request: Request) -> Answer:
        return Answer({"weights": weights}) if request.path == "/health" else own_server(request)

    def run(stage: str = "fit", **options: Any) -> None:
        spec, short = ModelSpec(name=str(tiny_model_dir)), Sampling(max_new_tokens=6)
        module = PPOPolicyModule(spec, HTTPReward(server.url), sampling=short)
        options |= {"limit_train_batches": 1, "enable_checkpointing": False}
        trainer = quiet_trainer(tmp_path, [], **options)
        if stage == "validate":
            trainer.validate(module, prompt_loader(tiny_model_dir), file, weights_only=True)
        else:
            trainer.fit(module, prompt_loader(tiny_model_dir), ckpt_path=resumed)
            trainer.save_checkpoint(file)

    file = str(tmp_path / "policy.ckpt")
    resumed: str | None = None
    with serving(answer) as server:
        run(max_epochs=1)
        resumed, weights = file, "rules 2"
        run("validate", limit_val_batches=1)  # another reward may look at the policy
        with pytest.raises(CheckpointError, match=r"of reward rules 1, now rules 2.*former model"):
            run(max_epochs=2)
        weights = "rules 1"
        run(max_epochs=2)
