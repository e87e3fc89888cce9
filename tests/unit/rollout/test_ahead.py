"""Sampling one step ahead: on a server that speaks vLLM's HTTP on loopback."""

import copy
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_rlhf.callbacks import IterationCheckpoint
from lit_rlhf.data import FileSource, PromptDataModule
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.modules import DAPOPolicyModule, GRPOPolicyModule, PolicyModule
from lit_rlhf.modules.online import OnlineDPOPolicyModule
from lit_rlhf.objectives import TruncatedImportance
from lit_rlhf.rollout import (
    Ahead,
    NativeEngine,
    RolloutEngine,
    RolloutRequest,
    Sampling,
    VLLMServerEngine,
)
from lit_rlhf.testing import tiny_prompts, write_jsonl
from lit_rlhf.types import Generation, PromptBatch
from tests.invariants.resume_plans import difference
from tests.loopback import Answer, Request, serving
from tests.reference.generations import make_request, make_seeds, sequences
from tests.tolerances import FP32_MODEL, PROCESSES
from tests.unit.callbacks.standins import quiet_trainer
from tests.unit.modules.policies import CountVowels
from tests.unit.rollout.fake_vllm import FakeServer
from tests.unit.rollout.served import move


class Gate:
    """A server whose completions of rollouts wait until it is opened."""

    def __init__(self, model_dir: Path) -> None:
        self.server = FakeServer(model_dir)
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()

    def __call__(self, asked: Request) -> Answer:
        if asked.path.endswith("/completions") and asked.body["max_tokens"] == 6:
            self.begun.set()
            assert self.open.wait(30)
        return self.server(asked)


@pytest.fixture
def gate(tiny_model_dir: Path) -> Gate:
    return Gate(tiny_model_dir)


@pytest.fixture
def engine(gate: Gate) -> Iterator[Ahead]:
    with serving(gate) as loopback:
        yield Ahead(VLLMServerEngine(loopback.url))
        gate.open.set()


def request(seed: int = 0) -> RolloutRequest:
    return make_request(Sampling(max_new_tokens=6), 2, seeds=make_seeds(12) + seed)


def same(ours: Generation, native: Generation) -> None:
    assert sequences(ours) == sequences(native)
    torch.testing.assert_close(ours.logprobs, native.logprobs, **FP32_MODEL)


def test_it_samples_meanwhile_from_the_weights_as_they_were(
    engine: Ahead, gate: Gate, backbone: Backbone
) -> None:
    before = NativeEngine().generate(backbone, request())
    gate.open.clear()
    engine.look_ahead(backbone, request(), version=7)
    assert gate.begun.wait(30), "before anybody asks for it"
    move(backbone, 2)  # while it waits
    gate.open.set()
    found = engine.generate(backbone, request())
    same(found, before)
    assert found.versions is not None and found.versions.unique().tolist() == [7]
    now = engine.generate(backbone, request())
    same(now, NativeEngine().generate(backbone, request()))
    assert now.versions is None
    assert sequences(now) != sequences(before)


def test_what_else_is_asked_for_waits_and_has_the_weights_as_they_are(
    engine: Ahead, gate: Gate, backbone: Backbone
) -> None:
    before = NativeEngine().generate(backbone, request())
    gate.open.clear()
    engine.look_ahead(backbone, request(), version=0)
    assert gate.begun.wait(30)
    move(backbone, 2)
    threading.Timer(0.3, gate.open.set).start()
    validation = request(seed=1000)
    same(engine.generate(backbone, validation), NativeEngine().generate(backbone, validation))
    same(engine.generate(backbone, request()), before)


def test_what_fails_is_said_when_it_is_asked_for(
    engine: Ahead, gate: Gate, backbone: Backbone
) -> None:
    engine.generate(backbone, request())
    assert isinstance(engine.engine, VLLMServerEngine)
    object.__setattr__(engine.engine.servers.servers[0]._client.endpoint, "retries", 0)
    gate.server.die_after = len(gate.server.completions)
    engine.look_ahead(backbone, request(), version=0)
    assert engine.state_dict() == {}, "a resumed run samples it anew"
    with pytest.raises(ServiceError, match="can't be reached"):
        engine.generate(backbone, request())


def test_what_fails_is_sampled_anew_where_a_server_is_waited_for(
    gate: Gate, backbone: Backbone, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(gate) as loopback:
        engine = Ahead(VLLMServerEngine(loopback.url, wait=60.0))
        assert isinstance(engine.engine, VLLMServerEngine)
        engine.generate(backbone, request())
        client = engine.engine.servers.servers[0]._client
        object.__setattr__(client.endpoint, "retries", 0)
        gate.server.die_after = len(gate.server.completions)
        engine.look_ahead(backbone, request(), version=0)
        assert engine.state_dict() == {}
        gate.server.die_after, gate.server.down = None, False
        move(backbone, 2)
        found = engine.generate(backbone, request())
    assert "What was to be sampled ahead is sampled now, by these weights." in caplog.text
    same(found, NativeEngine().generate(backbone, request()))
    assert found.versions is None, "no older ones: the policy writes down its own"


class OnACopy(NativeEngine):
    """Samples here, in the thread, from weights that nobody else uses meanwhile."""

    samples_elsewhere = True

    def begin(self, backbone: Backbone, asked: RolloutRequest) -> Callable[[], Generation]:
        assert asked.values is None, "they'd be an older critic's"
        own = copy.deepcopy(backbone)

        def sample() -> Generation:
            assert not torch.is_grad_enabled()
            return NativeEngine().sample(own, asked)

        return sample


def test_no_graph_is_kept_of_what_is_sampled(backbone: Backbone) -> None:
    engine, asked = Ahead(OnACopy()), replace(request(), values="value")
    engine.look_ahead(backbone, asked, version=0)
    generation = engine.generate(backbone, asked)
    assert generation.logprobs is not None and not generation.logprobs.requires_grad
    assert generation.values is None


def test_its_state_is_what_it_has_sampled(
    engine: Ahead, backbone: Backbone, tmp_path: Path
) -> None:
    assert engine.state_dict() == {}
    engine.look_ahead(backbone, request(), version=3)
    torch.save(engine.state_dict(), tmp_path / "state")
    other = Ahead(VLLMServerEngine("http://127.0.0.1:9"))  # which it need not ask
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    ours, theirs = (each.generate(backbone, request()) for each in (engine, other))
    assert difference(vars(ours), vars(theirs)) is None


def test_bad_arrangements_are_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"NativeEngine samples on the policy's device"):
        Ahead(NativeEngine())
    servers = VLLMServerEngine()
    with pytest.raises(ConfigurationError, match=r"staleness.*0 or 1"):
        Ahead(servers, staleness=2)
    spec, ahead = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec()), Ahead(servers)
    with pytest.raises(ConfigurationError, match="recompute_logprobs: true"):
        GRPOPolicyModule(spec, CountVowels(), engine=ahead)
    for make in (GRPOPolicyModule, OnlineDPOPolicyModule):
        with pytest.raises(ConfigurationError, match="Set importance_correction"):
            make(spec, CountVowels(), engine=ahead, recompute_logprobs=True)
    now = Ahead(servers, staleness=0)
    GRPOPolicyModule(spec, CountVowels(), engine=now, recompute_logprobs=True)


# -- in training ------------------------------------------------------------------------------------------------------


class Late(RolloutEngine):
    """The reference: samples rollouts by itself, with the weights that the policy had at the rollout before."""

    own_arithmetic = False
    staleness = 1

    def __init__(self) -> None:
        self.before: list[Tensor] | None = None

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        if request.num_samples == 1:  # validation
            return NativeEngine().generate(backbone, request)
        weights = [weight for weight in backbone.parameters() if weight.requires_grad]
        now = [weight.detach().clone() for weight in weights]
        put(weights, self.before or now)
        found = NativeEngine().generate(backbone, request)
        put(weights, now)
        self.before = now
        return found


@torch.no_grad()
def put(weights: list[Any], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


class Watch(Callback):
    """What each iteration logged of staleness, and the prompts of the batches."""

    def __init__(self) -> None:
        self.staleness: list[float] = []
        self.prompts: list[list[int]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.staleness.append(float(trainer.callback_metrics.get("train/rollout/staleness", -1)))
        self.prompts.append(args[2]["index"].tolist())


def train(
    tmp: Path,
    model: Path,
    engine: RolloutEngine,
    make: Callable[..., PolicyModule] = GRPOPolicyModule,
    ckpt_path: str | None = None,
    workers: int = 0,
    module: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[PolicyModule, Watch]:
    """Four iterations an epoch, with a validation between the second and the third."""
    policy = make(
        ModelSpec(name=str(model), lora=LoraSpec(rank=2)),
        CountVowels(),
        engine=engine,
        num_samples=2,
        sampling=Sampling(max_new_tokens=5),
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2, eps=1e-4),
        seed=3,
        **(module or {}),
    )
    prompts = tmp / "prompts.jsonl"
    if not prompts.exists():
        write_jsonl(prompts, tiny_prompts(16))
    data = PromptDataModule(
        train=FileSource(str(prompts)),
        val=FileSource(str(prompts)),
        tokenizer=str(model),
        batch_size=4,
        num_workers=workers,
        cache_dir=str(tmp / "cache"),
    )
    watch = Watch()
    checkpoints = IterationCheckpoint(str(tmp / "checkpoints"), every_n_iterations=1, keep_last=99)
    settings = {"max_epochs": 1, "limit_val_batches": 1, "val_check_interval": 2} | options
    trainer = quiet_trainer(tmp, [watch, checkpoints], **settings)
    trainer.fit(policy, datamodule=data, ckpt_path=ckpt_path)
    return policy, watch


def trained(policy: PolicyModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}


def test_it_trains_as_one_that_is_a_step_late(
    engine: Ahead, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ours, watch = train(tmp_path / "ours", tiny_model_dir, engine)
    theirs, _ = train(tmp_path / "theirs", tiny_model_dir, Late())
    assert watch.staleness == [0, 1, 1, 1]
    assert sorted(each for batch in watch.prompts for each in batch) == list(range(16))
    start, _ = train(
        tmp_path / "start", tiny_model_dir, Late(), limit_train_batches=1, val_check_interval=1
    )
    for name, weight in trained(theirs).items():
        torch.testing.assert_close(trained(ours)[name], weight, **PROCESSES, msg=name)
    moved = [(trained(start)[name] - w).abs().max() for name, w in trained(theirs).items()]
    assert min(moved) > 1e-3
    assert engine.state_dict() == {}, "nothing is left over"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.walk
def test_a_resumed_run_trains_on_what_was_sampled_ahead(
    engine: Ahead, tiny_model_dir: Path, tmp_path: Path, workers: int
) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "workers": workers}
    _, watch = train(tmp_path / "whole", tiny_model_dir, engine, **options)
    assert watch.staleness == [0, 1, 1, 1] * 2, "nothing is sampled ahead over an epoch's end"
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").glob("iteration-*.ckpt"))
    for number in (2, 4, 5):
        state = torch.load(checkpoints[number - 1], weights_only=True)
        assert bool(state["lit_rlhf"]["state"]["engine"]) == (number % 4 != 0)
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "checkpoints").mkdir()
        shutil.copy(checkpoints[number - 1], directory / "checkpoints")
        shutil.copy(tmp_path / "whole" / "prompts.jsonl", directory)
        _, then = train(directory, tiny_model_dir, engine, ckpt_path="last", **options)
        assert then.prompts == watch.prompts[number:]
        assert then.staleness == watch.staleness[number:]
        newest = max((directory / "checkpoints").glob("iteration-*.ckpt"))
        ours, theirs = (torch.load(path, weights_only=True) for path in (newest, checkpoints[-1]))
        assert difference(ours["state_dict"], theirs["state_dict"]) is None, number
        assert difference(ours["optimizer_states"], theirs["optimizer_states"]) is None


class OwnSeeds(GRPOPolicyModule):
    """Asks for what depends on the iteration, by the method that is there for it."""

    def rollout_request(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> RolloutRequest:
        asked = super().rollout_request(batch, sampling, purpose, num_samples)
        return replace(asked, seeds=asked.seeds + 1000 * self.iteration)


def test_an_own_request_is_sampled_ahead(
    engine: Ahead, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ours, watch = train(tmp_path / "ours", tiny_model_dir, engine, OwnSeeds)
    theirs, _ = train(tmp_path / "theirs", tiny_model_dir, Late(), OwnSeeds)
    assert watch.staleness == [0, 1, 1, 1], "the next iteration asks for what was begun"
    for name, weight in trained(theirs).items():
        torch.testing.assert_close(trained(ours)[name], weight, **PROCESSES, msg=name)


def test_pools_of_prompts_are_sampled_ahead_by_turns(
    engine: Ahead, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = {"oversampling": 2}
    _, watch = train(tmp_path, tiny_model_dir, engine, DAPOPolicyModule, module=module)
    assert watch.staleness[0] == 0
    assert all(0 < each <= 1 for each in watch.staleness[1:])
