"""What may be wrong with a vLLM server: said before anything is sampled, with its address and the way out.

The answers are those that vLLM 0.32 gives.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone
from lit_rlhf.rollout import DiskSync, NativeEngine
from lit_rlhf.testing import write_tiny_model
from tests.loopback import Answer
from tests.unit.rollout.fake_vllm import FakeServer
from tests.unit.rollout.served import engine_on, same, sample
from tests.walks import walk


def answers(path: str, answer: Answer) -> Callable[[FakeServer], None]:
    return lambda fake: setattr(fake, path, lambda _: answer)


def failed(message: str) -> Answer:
    return Answer({"error": {"message": message, "type": "InternalServerError"}}, 500)


def forgets(fake: FakeServer) -> None:
    """As one of several servers behind one address: another took the adapter."""
    fake.load_lora_adapter = lambda _: Answer(b"Success: LoRA adapter added.")  # type: ignore[method-assign]


def another_tokenizer(fake: FakeServer) -> None:
    fake.tokenize = lambda _: Answer({"tokens": [1, 2]})  # type: ignore[method-assign]


def too_short(fake: FakeServer) -> None:
    fake.limit = 10


def locked(fake: FakeServer) -> None:
    fake.key = "secret"


def memory(what: str) -> str:
    return f"Call to {what} failed: CUDA out of memory. Tried to allocate 2.00 GiB."


NOT_VLLM = Answer({"object": "list", "data": []})
CASES: dict[str, tuple[Callable[[FakeServer], None], str, str]] = {
    "another service": (answers("models", NOT_VLLM), "lora", "serves no model .*of vLLM itself"),
    "no service": (answers("models", Answer(b"<html>")), "lora", "no JSON.*Start one: VLLM_ALLOW"),
    "another tokenizer": (another_tokenizer, "lora", "has another tokenizer.*the --tokenizer"),
    "too short": (too_short, "lora", r"takes 10 tokens \(--max-model-len\).*needs 1\d"),
    "a key": (locked, "lora", r"HTTP 401.*\(api_key_env\)"),
    "adapters are off": (
        answers("load_lora_adapter", Answer({"error": {"message": "Not Found"}}, 404)),
        "lora",
        "Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora",
    ),
    "LoRA is off": (
        answers("load_lora_adapter", failed("LoRA is not enabled. Use --enable-lora to enable")),
        "lora",
        "Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora",
    ),
    "a rank too small": (
        answers("load_lora_adapter", failed("LoRA rank 4 is greater than max_lora_rank 2.")),
        "lora",
        "a --max-lora-rank that is no smaller",
    ),
    "no disk that both see": (
        answers(
            "load_lora_adapter", Answer({"error": {"message": "No adapter found for /x"}}, 404)
        ),
        "lora",
        r"should sync\.init_args\.directory name one that both see\?",
    ),
    "no directory that both see": (
        answers("collective_rpc", failed("Call to collective_rpc method failed: /x")),
        "disk",
        r"should sync\.init_args\.directory name one that both see\?",
    ),
    "weights are not for change": (
        answers("pause", Answer({"detail": "Not Found"}, 404)),
        "disk",
        "Start it with VLLM_SERVER_DEV_MODE=1",
    ),
    "no memory for an adapter": (
        answers("load_lora_adapter", failed(memory("add_lora"))),
        "lora",
        "out of memory.*Start it with a smaller --gpu-memory-utilization, or on a device",
    ),
    "no memory for weights": (
        answers("collective_rpc", failed(memory("reload_weights"))),
        "disk",
        "out of memory.*Start it with a smaller --gpu-memory-utilization, or on a device",
    ),
    "no memory to sample": (answers("complete", failed(memory("x"))), "lora", "CUDA out of memory"),
    "an adapter that never arrives": (forgets, "lora", r"doesn't know it.*VLLMServerEngine\.urls"),
}


@pytest.mark.parametrize("case", walk(CASES, *list(CASES)[:6]))
def test_what_may_be_wrong(case: str, fakes: Any, backbone: Backbone) -> None:
    spoil, sync, message = CASES[case]
    fake, loopback = fakes[0]
    engine = engine_on(fakes[:1], **({"sync": DiskSync()} if sync == "disk" else {}))
    spoil(fake)
    with pytest.raises(ConfigurationError, match=message) as caught:
        sample(engine, backbone)
    assert loopback.url in str(caught.value)
    assert not fake.paused, "it goes on"
    assert not [each for each in fake.completions if each["max_tokens"] == 6], "none was sampled"


def test_another_model(fakes: Any, backbone: Backbone, tmp_path: Path) -> None:
    fakes[0][0].vllm = FakeServer(write_tiny_model(tmp_path / "other", seed=1)).vllm
    with pytest.raises(ConfigurationError, match=r"Start vLLM with the model that model\.backbone"):
        sample(engine_on(fakes[:1]), backbone)


@pytest.mark.parametrize("sync", ["lora", "disk"])
def test_weights_that_never_arrive(fakes: Any, backbone: Backbone, sync: str) -> None:
    fake, loopback = fakes[0]
    late = Answer({"results": [None]}, delay=5.0)
    fake.load_lora_adapter = fake.collective_rpc = lambda _: late
    options = {"sync": DiskSync()} if sync == "disk" else {}
    engine = engine_on(fakes[:1], timeout=2.0, **options)
    for server in engine.servers.servers:
        object.__setattr__(server._client.endpoint, "retries", 0)
    begun = time.monotonic()
    with pytest.raises(
        ConfigurationError, match=r"more than timeout=2\.0.*Look at its log"
    ) as found:
        sample(engine, backbone)
    assert time.monotonic() < begun + 30 and loopback.url in str(found.value)


def test_keys(fakes: Any, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes[0][0].key = "secret"
    monkeypatch.setenv("A_KEY", "another")
    with pytest.raises(ConfigurationError, match=r"Look at the key in \$A_KEY"):
        sample(engine_on(fakes[:1], api_key_env="A_KEY"), backbone)
    monkeypatch.setenv("A_KEY", "secret")
    engine = engine_on(fakes[:1], api_key_env="A_KEY")
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
