"""Several servers, whole weights, what may be wrong with a server: on loopback, speaking vLLM's HTTP."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.rollout import DiskSync, NativeEngine, NCCLSync
from lit_rlhf.rollout.vllm import server as server_module
from lit_rlhf.testing import write_tiny_model
from tests.loopback import Answer, serving
from tests.unit.rollout.fake_vllm import FakeServer, GlooGroup
from tests.unit.rollout.served import engine_on, move, same, sample


def of_rollout(fake: FakeServer) -> list[tuple[int, ...]]:
    """Prompts of the completions that weren't a check."""
    return [tuple(each["prompt"]) for each in fake.completions if each["max_tokens"] == 6]


def test_each_server_gets_the_weights_and_whole_prompts(fakes: Any, backbone: Backbone) -> None:
    engine = engine_on(fakes)
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    first, second = (set(of_rollout(fake)) for fake, _ in fakes)
    assert len(first) == len(second) == 3
    assert not first & second, "the samples of a prompt stay together"
    old = {fake.vllm.loaded[0] for fake, _ in fakes}
    move(backbone, 2)
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    (new,) = {name for fake, _ in fakes for name in fake.vllm.loaded}
    assert {new} != old


def test_a_server_that_dies_loses_nothing_and_comes_back(
    fakes: Any, backbone: Backbone, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_on(fakes, ask_again=0.01)
    first, _ = fakes[0]
    sample(engine, backbone)
    first.die_after = len(first.completions) + 3  # in the middle of the rollout
    move(backbone, 2)
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    assert first.down
    assert "is left out, and asked again in 0.01 seconds; 1 of 2 servers go on" in caplog.text
    move(backbone, 3)
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    first.down, first.die_after = False, None
    first.vllm = FakeServer(tiny_model_dir).vllm  # started anew, without adapters
    done = len(first.completions)
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    assert len(first.completions) > done + 3, "it samples again"
    assert "is back" in caplog.text


def test_a_server_that_was_started_anew_gets_the_weights_again(
    fakes: Any, backbone: Backbone, tiny_model_dir: Path
) -> None:
    engine = engine_on(fakes[:1])
    sample(engine, backbone)
    fakes[0][0].vllm = FakeServer(tiny_model_dir).vllm
    same(sample(engine, backbone), sample(NativeEngine(), backbone))


def test_when_no_server_is_left_each_is_named(fakes: Any, backbone: Backbone) -> None:
    engine = engine_on(fakes)
    sample(engine, backbone)
    for fake, _ in fakes:
        fake.down = True
    with pytest.raises(ServiceError, match=r"None of the 2 servers answers\.") as caught:
        sample(engine, backbone)
    assert all(loopback.url in str(caught.value) for _, loopback in fakes)


def test_one_that_was_left_out_keeps_its_own_reason(fakes: Any, backbone: Backbone) -> None:
    engine = engine_on(fakes)
    sample(engine, backbone)
    (first, at), (second, _) = fakes
    first.down = True
    sample(engine, backbone)
    second.die_after = len(second.completions) + 3
    with pytest.raises(ServiceError, match=at.url) as caught:
        sample(engine, backbone)
    assert "doesn't answer" not in str(caught.value)


def revive(fake: FakeServer, model_dir: Path) -> None:
    fake.vllm = FakeServer(model_dir).vllm
    fake.die_after, fake.down = None, False


@pytest.mark.parametrize("when", ["between rollouts", "in a rollout"])
def test_when_no_server_is_left_one_is_waited_for(
    fakes: Any,
    backbone: Backbone,
    tiny_model_dir: Path,
    when: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_PAUSE", 0.05)
    engine = engine_on(fakes, wait=30.0)
    sample(engine, backbone)
    move(backbone, 2)
    for fake, _ in fakes:
        fake.down = when == "between rollouts"
        fake.die_after = len(fake.completions) + 4
    threading.Timer(0.5, revive, [fakes[1][0], tiny_model_dir]).start()
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    assert "No vLLM server is left; waiting 30 seconds for one. None of the 2" in caplog.text
    assert fakes[0][0].down


def test_one_that_comes_back_as_another_model_is_refused(
    fakes: Any, backbone: Backbone, tmp_path: Path
) -> None:
    engine = engine_on(fakes[:1], wait=60.0)
    sample(engine, backbone)
    fakes[0][0].vllm = FakeServer(write_tiny_model(tmp_path / "other", seed=1)).vllm
    begun = time.monotonic()
    with pytest.raises(ConfigurationError, match="base isn't the policy's"):
        sample(engine, backbone)
    assert time.monotonic() < begun + 20


def test_at_the_start_one_may_be_away_and_none_may_be_wrong(
    fakes: Any, backbone: Backbone, tmp_path: Path
) -> None:
    fakes[0][0].down = True
    engine = engine_on(fakes)
    same(sample(engine, backbone), sample(NativeEngine(), backbone))
    fakes[0][0].down = False
    fakes[0][0].vllm = FakeServer(write_tiny_model(tmp_path / "other", seed=1)).vllm
    with pytest.raises(ConfigurationError, match="base isn't the policy's"):
        sample(engine_on(fakes), backbone)


def test_whole_weights_by_disk(fakes: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    full = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    engine = engine_on(fakes, sync=DiskSync(tmp_path / "shared"))
    for step in range(3):
        move(full, step)
        same(sample(engine, full), sample(NativeEngine(), full))
        assert not any(fake.paused for fake, _ in fakes)
    written = list((tmp_path / "shared").glob("*/*"))
    assert len(written) == 1, "those before are removed"
    same(sample(engine, full), sample(NativeEngine(), full))
    assert list((tmp_path / "shared").glob("*/*")) == written, "nothing has changed"
    fakes[0][0].vllm = FakeServer(tiny_model_dir).vllm  # started anew, with what it began with
    same(sample(engine, full), sample(NativeEngine(), full))


def test_a_cache_that_was_not_emptied_is_not_sampled_with(
    fakes: Any, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    engine = engine_on(fakes, sync=DiskSync(), ask_again=1e-3)
    sample(engine, full)
    move(full, 1)
    fake, emptied = fakes[0][0], []
    with monkeypatch.context() as patch:
        patch.setattr(fake, "reset_prefix_cache", lambda _: Answer({"success": False}))
        same(sample(engine, full), sample(NativeEngine(), full))
    time.sleep(0.01)
    empty = fake.reset_prefix_cache
    monkeypatch.setattr(fake, "reset_prefix_cache", lambda body: emptied.append(1) or empty(body))
    same(sample(engine, full), sample(NativeEngine(), full))
    assert emptied, "it gets the same version again"


class GlooSync(NCCLSync):
    """With gloo in NCCL's place, for tensors on the CPU."""

    device, number, join = "cpu", staticmethod(GlooGroup.number), GlooGroup


def test_whole_weights_by_broadcast(fakes: Any, tiny_model_dir: Path) -> None:
    full = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    engine = engine_on(fakes, sync=GlooSync())
    for step in range(3):
        move(full, step)
        same(sample(engine, full), sample(NativeEngine(), full))
        assert not any(fake.paused for fake, _ in fakes)
    groups = [fake.group for fake, _ in fakes]
    fakes[0][0].vllm = FakeServer(tiny_model_dir).vllm  # started anew, in no group
    same(sample(engine, full), sample(NativeEngine(), full))
    assert fakes[0][0].group is not groups[0] and fakes[1][0].group is groups[1]


def test_adapters_are_merged_where_weights_are_broadcast(fakes: Any, backbone: Backbone) -> None:
    same(sample(engine_on(fakes, sync=GlooSync()), backbone), sample(NativeEngine(), backbone))


def test_what_may_be_wrong_with_a_broadcast(
    fakes: Any, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="from GPU to GPU, and the policy is on cpu: use"):
        sample(engine_on(fakes, sync=NCCLSync()), backbone)
    for missing in ("get_world_size", "init_weight_transfer_engine", "update_weights"):
        with monkeypatch.context() as patch:
            patch.setattr(FakeServer, missing, None)
            with pytest.raises(ConfigurationError, match="and --weight-transfer-config") as caught:
                sample(engine_on(fakes[:1], sync=GlooSync()), backbone)
        assert fakes[0][1].url in str(caught.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hidden_size": 64}, r"has the shape \[267, 64\] there and \[267, 32\] here"),
        (
            {"num_hidden_layers": 3},
            r"9 of them are on one side alone, such as model\.layers\.2\S+, only there",
        ),
        (
            {"num_hidden_layers": 1},
            r"9 of them are on one side alone, such as model\.layers\.1\S+, only here",
        ),
    ],
)
def test_whole_weights_that_do_not_fit_are_not_sent(
    tiny_model_dir: Path, tmp_path: Path, other: dict[str, int], message: str
) -> None:
    """Half read, they would leave a server that can't be used."""
    fake = FakeServer(write_tiny_model(tmp_path / "other", **other))
    full = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    with serving(fake) as loopback:
        engine = engine_on([(fake, loopback)], sync=DiskSync())
        with pytest.raises(ConfigurationError, match=message) as caught:
            sample(engine, full)
    assert "Start it with the model that model.backbone.name names." in str(caught.value)
    assert fake.vllm.weights == "default" and not fake.completions


def test_adapters_are_merged_where_weights_go_whole(fakes: Any, backbone: Backbone) -> None:
    same(sample(engine_on(fakes, sync=DiskSync()), backbone), sample(NativeEngine(), backbone))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("far", [0.1, 0.004])
def test_a_server_that_keeps_old_weights_is_an_error(
    fakes: Any, backbone: Backbone, whole: bool, far: float
) -> None:
    engine = engine_on(fakes[:1], **({"sync": DiskSync()} if whole else {}))
    sample(engine, backbone)
    fakes[0][0].keep = True
    message = r"older ones: its log-probs|weights aren't|in part: log-probs"
    with pytest.raises(ConfigurationError, match=message):
        drift(engine, backbone, far)


def test_a_server_that_keeps_a_part_of_its_weights_is_an_error(
    fakes: Any, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM on a CPU keeps an output layer that is tied to the embeddings."""
    fake, full = fakes[0][0], Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    old = fake.vllm.model.model.lm_head.weight.detach().clone()
    load = fake.vllm.load_weights

    def all_but_the_head(version: Any) -> None:
        load(version)
        fake.vllm.model.model.lm_head.weight.data.copy_(old)

    monkeypatch.setattr(fake.vllm, "load_weights", all_but_the_head)
    monkeypatch.setattr(full.model.config, "tie_word_embeddings", True)
    engine = engine_on(fakes[:1], sync=DiskSync())
    sample(engine, full)
    message = r"in part: .* differ by 0\.[01]\d* nats.*tie_word_embeddings: false"
    with pytest.raises(ConfigurationError, match=message):
        shake(engine, full)


def shake(engine: Any, backbone: Backbone) -> None:
    noise = torch.Generator().manual_seed(2)
    head = backbone.model.lm_head.weight
    for _ in range(20):
        head.data.add_(torch.randn(head.shape, generator=noise) * 0.01)
        sample(engine, backbone, max_new_tokens=1)


def drift(engine: Any, backbone: Backbone, far: float) -> None:
    for _ in range(20):
        for weight in backbone.adapter_weights("policy").values():
            weight.data.add_(far)
        sample(engine, backbone, max_new_tokens=1)
