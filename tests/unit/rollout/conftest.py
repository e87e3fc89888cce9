"""Two servers that speak vLLM's HTTP, and a policy to sample from."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from tests.loopback import serving
from tests.unit.rollout.fake_vllm import FakeServer
from tests.unit.rollout.served import Fakes, move


@pytest.fixture
def fakes(tiny_model_dir: Path) -> Iterator[Fakes]:
    with ExitStack() as stack:
        servers = [FakeServer(tiny_model_dir) for _ in range(2)]
        yield [(server, stack.enter_context(serving(server))) for server in servers]


@pytest.fixture(scope="session")
def moved_backbone(tiny_model_dir: Path) -> Backbone:
    """Of which each test gets a copy."""
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)))
    backbone.add_adapter("policy")
    move(backbone, 1)
    return backbone


@pytest.fixture
def backbone(moved_backbone: Backbone) -> Backbone:
    return copy.deepcopy(moved_backbone)
