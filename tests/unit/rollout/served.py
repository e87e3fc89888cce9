"""An engine on servers that speak vLLM's HTTP, what it samples, and what it should."""

from typing import Any

import torch

from lit_rlhf.models import Backbone
from lit_rlhf.rollout import Sampling, VLLMServerEngine
from lit_rlhf.types import Generation
from tests.loopback import Loopback
from tests.reference.generations import make_request, sequences
from tests.tolerances import FP32_MODEL
from tests.unit.rollout.fake_vllm import FakeServer

Fakes = list[tuple[FakeServer, Loopback]]


def engine_on(fakes: Fakes, **options: Any) -> VLLMServerEngine:
    engine = VLLMServerEngine([loopback.url for _, loopback in fakes], **options)
    for server in engine.servers.servers:  # no test waits half a second and more
        for client in (server._client, server._quick):
            object.__setattr__(client.endpoint, "backoff", 0.0)
    return engine


def move(backbone: Backbone, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn(weight.shape, generator=noise) * 0.1)


def sample(engine: Any, backbone: Backbone, **options: Any) -> Generation:
    sampling = Sampling(**{"max_new_tokens": 6} | options)
    return engine.generate(backbone, make_request(sampling, 2))


def same(ours: Generation, native: Generation) -> None:
    assert sequences(ours) == sequences(native)
    torch.testing.assert_close(ours.logprobs, native.logprobs, **FP32_MODEL)
