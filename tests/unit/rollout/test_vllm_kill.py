"""Two real vLLM servers of which one is killed in training and started again: nothing is lost (`pytest -m vllm`)."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.modules import GRPOPolicyModule
from lit_rlhf.objectives import TruncatedImportance
from lit_rlhf.rollout import DiskSync, RolloutRequest, Sampling, VLLMServerEngine
from lit_rlhf.rollout.base import completion_logprobs
from lit_rlhf.rollout.vllm.client import VLLMServer
from lit_rlhf.testing import write_tiny_model
from lit_rlhf.types import Generation
from tests.tolerances import FP32_MODEL
from tests.unit.callbacks.standins import quiet_trainer
from tests.unit.modules.policies import CountVowels, prompt_loader
from tests.unit.rollout.real_vllm import RealVLLM, serving_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2400)]
ITERATIONS, KILLED_AT, BACK_AT = 20, 6, 13


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads as wide as vLLM's attention on CPU wants them."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=128, head_dim=32)


@pytest.fixture(scope="module")
def servers(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealVLLM]]:
    with serving_vllm(model_dir, tmp_path_factory.mktemp("servers"), count=2) as both:
        yield both


class Watched(VLLMServerEngine):
    """Notes what each rollout drew, who drew it, and how far its log-probs are from a training forward's."""

    def __init__(self, urls: list[str], **options: Any) -> None:
        super().__init__(urls, ask_again=0.5, **options)
        self.rollouts: list[Generation] = []
        self.gaps: list[float] = []
        self.drew: list[set[str]] = []
        self.first_answer = threading.Event()
        for server in self.servers.servers:
            self._note(server)

    def _note(self, server: VLLMServer) -> None:
        complete = server.complete

        def noted(*args: Any) -> Any:
            found = complete(*args)
            if self.drew:
                self.drew[-1].add(server._url)
                self.first_answer.set()
            return found

        server.complete = noted  # type: ignore[method-assign]

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        self.drew.append(set())
        found = super().sample(backbone, request)
        each, prompts = request.num_samples, request.prompts
        assert found.logprobs is not None
        for row, (tokens, mask) in enumerate(zip(found.tokens, found.mask, strict=True)):
            prompt = prompts.ids[row // each][prompts.mask[row // each]]
            ours = completion_logprobs(backbone, prompt, tokens[mask], "policy").cpu()
            self.gaps.append(float((ours - found.logprobs[row][mask]).abs().max()))
        self.rollouts.append(found)
        return found


class Kill(Callback):
    """Kills a server with SIGKILL in the midst of a rollout, has it started again, and waits for it some time later."""

    def __init__(self, engine: Watched, server: RealVLLM) -> None:
        self.engine, self.server = engine, server

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        done = len(self.engine.rollouts)
        if done == KILLED_AT:
            self.engine.first_answer.clear()
            threading.Thread(target=self._kill, daemon=True).start()
        elif done == KILLED_AT + 1:
            self.server.start()
        elif done == BACK_AT:
            self.server.wait()
            time.sleep(self.engine.servers.pause)

    def _kill(self) -> None:
        assert self.engine.first_answer.wait(60)
        self.server.stop(signal.SIGKILL)


def train(
    model_dir: Path, tmp: Path, engine: Watched, lora: LoraSpec | None, *callbacks: Callback
) -> dict[str, Tensor]:
    module = GRPOPolicyModule(
        ModelSpec(name=str(model_dir), lora=lora),
        CountVowels(),
        engine=engine,
        num_samples=4,
        sampling=Sampling(max_new_tokens=16),
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3),
        seed=7,
    )
    trainer = quiet_trainer(
        tmp, list(callbacks), max_epochs=ITERATIONS // 2, enable_checkpointing=False
    )
    trainer.fit(module, prompt_loader(model_dir))
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora", [LoraSpec(rank=4), None], ids=["adapter", "whole"])
def test_a_killed_server_loses_nothing(
    servers: list[RealVLLM],
    model_dir: Path,
    tmp_path: Path,
    lora: LoraSpec | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {} if lora else {"sync": DiskSync()}
    urls = [server.url for server in servers]
    runs = {}
    for name in ("unbroken", "killed"):
        engine = Watched(urls, **options)
        callbacks = [Kill(engine, servers[0])] if name == "killed" else []
        runs[name] = engine, train(model_dir, tmp_path / name, engine, lora, *callbacks)
        assert len(engine.rollouts) == ITERATIONS
        assert max(engine.gaps) < 10 * FP32_MODEL["atol"], "each server held the policy's weights"
        engine.sync.close(engine.servers.servers)
    (unbroken, expected), (killed, found) = runs["unbroken"], runs["killed"]
    assert all(len(drew) == 2 for drew in unbroken.drew)
    assert [len(drew) for drew in killed.drew[:KILLED_AT]] == [2] * KILLED_AT
    assert killed.drew[KILLED_AT + 1] == {urls[1]}
    assert all(len(drew) == 2 for drew in killed.drew[BACK_AT:]), "it takes part again"
    assert f"{urls[0]} is left out" in caplog.text and f"{urls[0]} is back" in caplog.text
    same = [
        ours.tokens.equal(theirs.tokens)
        for ours, theirs in zip(unbroken.rollouts, killed.rollouts, strict=True)
    ]
    assert all(same)
    texts = [str(rollout.tokens.tolist()) for rollout in killed.rollouts[::2]]
    assert len(set(texts)) == len(texts), "of the same prompts, as the policy moves"
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-3, msg=name)
