"""What a server may answer that isn't vLLM, or is vLLM amiss: one sentence that names its address."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.http import Endpoint, HTTPClient
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.rollout.vllm.client import VLLMServer
from lit_rlhf.rollout.vllm.sampler import Completed, Request as Wanted
from tests.loopback import Answer as Sent, Request, serving
from tests.unit.models.conftest import LORA

MODELS = {"data": [{"id": "base", "parent": None}]}
Answer = tuple[int, str, str]
Serve = Callable[[dict[str, Answer]], str]


def as_json(body: Any) -> Answer:
    return 200, "application/json", json.dumps(body)


def choice(**changes: Any) -> Any:
    good = {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
    return {"choices": [good | changes]}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answer each path with what it is given."""
    answers: dict[str, Answer] = {"/tokenize": (404, "text/plain", "no such page")}

    def answer(request: Request) -> Sent:
        status, kind, body = answers[request.path]
        return Sent(body.encode(), status, {"content-type": kind})

    with serving(answer) as loopback:

        def start(given: dict[str, Answer]) -> str:
            answers.update(given)
            return loopback.url

        yield start


def asked(url: str, backbone: Backbone) -> list[Completed]:
    client = HTTPClient(Endpoint(url, timeout=20, retries=0))
    server = VLLMServer(client, client)
    server.look(backbone, longest=10)
    return server.complete([Wanted([1], 0)], {"max_tokens": 2}, None)


def refused(url: str, backbone: Backbone, message: str) -> None:
    with pytest.raises(LitRLHFError, match=message) as caught:
        asked(url, backbone)
    assert url in str(caught.value)


@pytest.fixture(scope="module")
def backbone(tiny_model_dir: Any) -> Backbone:
    return Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LORA))


@pytest.mark.parametrize(
    "answer",
    [
        as_json({"data": []}),
        as_json({"data": [{"id": "adapter", "parent": "base"}]}),
        as_json({"data": ["base"]}),
        as_json({"data": None}),
        as_json({}),
        as_json([]),
        as_json(None),
        (200, "application/json", "{"),
        (200, "text/html", "<html>"),
        (500, "text/plain", "broken"),
        (404, "text/plain", "no such page"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2][:20]}",
)
def test_models(serve: Serve, backbone: Backbone, answer: Answer) -> None:
    refused(serve({"/v1/models": answer}), backbone, "server")


@pytest.mark.parametrize(
    "answer",
    [
        as_json({}),
        as_json({"choices": []}),
        as_json({"choices": [None]}),
        as_json({"choices": [*choice()["choices"] * 2]}),
        as_json(choice(token_ids=None)),
        as_json(choice(token_ids=["a"])),
        as_json(choice(token_ids=[])),
        as_json(choice(token_ids=[5, 6])),
        as_json(choice(token_ids=[5] * 3, logprobs={"token_logprobs": [-1.0] * 3})),
        as_json(choice(logprobs=None)),
        as_json(choice(logprobs={"token_logprobs": [None]})),
        (200, "application/json", "not json"),
        (503, "text/plain", "busy"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2][:60]}",
)
def test_completions(serve: Serve, backbone: Backbone, answer: Answer) -> None:
    url = serve({"/v1/models": as_json(MODELS), "/v1/completions": answer})
    refused(url, backbone, "complet")


def test_a_good_answer_is_taken(serve: Serve, backbone: Backbone) -> None:
    url = serve({"/v1/models": as_json(MODELS), "/v1/completions": as_json(choice())})
    (found,) = asked(url, backbone)
    assert (found.tokens, found.logprobs, found.stopped) == ([5], [-1.0], False)
