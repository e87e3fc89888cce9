"""What the engines on vLLM do around it; a second backbone stands in, `test_vllm_server.py` runs vLLM."""

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.modules import RLOOPolicyModule
from lit_rlhf.rollout import (
    AdapterSync,
    NativeEngine,
    Sampling,
    VLLMEngine,
    VLLMServerEngine,
    WeightSync,
)
from lit_rlhf.rollout.vllm.base import VLLMRollouts
from lit_rlhf.rollout.vllm.sampler import Completed
from lit_rlhf.testing import write_tiny_model
from lit_rlhf.types import Generation
from tests.reference.generations import make_request, sequences
from tests.tolerances import FP32_MODEL
from tests.unit.modules.one_iteration import TokenReward
from tests.unit.rollout.fake_vllm import FakeVLLM
from tests.unit.rollout.served import move
from tests.walks import walk

CONFIGS = Path(__file__).parents[3] / "configs"
STOPS = list(range(60, 110))


class Elsewhere(VLLMRollouts[Any]):
    """The engine on one fake in this process."""

    def __init__(self, model_dir: Path, sync: WeightSync | None = None, **options: Any) -> None:
        super().__init__(sync or AdapterSync())
        self.fake = FakeVLLM(model_dir, **options)

    def bring(self, backbone: Backbone, role: str, prompt: list[int], longest: int) -> Any:
        version = self.sync.publish(backbone, role)
        self.check_base(self.fake, backbone, prompt, version)
        if version is not None and not self.fake.holds(version):
            self.sync.load(self.fake, version)
            self.probe.check(self.fake, backbone, role, prompt, version)
        self.sync.retire([self.fake])
        return version.adapter if version else None

    def complete(self, prompts: Any, options: dict[str, Any], held: Any) -> list[Completed]:
        return self.fake.complete([each for own in prompts for each in own], options, held)


def _sample(engine: Any, backbone: Backbone, role: str = "policy", **options: Any) -> Generation:
    sampling = Sampling(**{"max_new_tokens": 8, "stop_token_ids": STOPS} | options)
    return engine.generate(backbone, make_request(sampling, 2, role=role))


@pytest.mark.parametrize("role", ["policy", "reference"])
@pytest.mark.parametrize(
    "options",
    walk(
        [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 20}, {"min_new_tokens": 3}],
        {"temperature": 0.7, "top_k": 20},
    ),
)
def test_requests_and_rows_are_those_of_the_native_engine(
    tiny_model_dir: Path, backbone: Backbone, role: str, options: dict[str, Any]
) -> None:
    ours = _sample(Elsewhere(tiny_model_dir), backbone, role, **options)
    native = _sample(NativeEngine(), backbone, role, **options)
    assert torch.equal(ours.tokens, native.tokens)
    assert torch.equal(ours.mask, native.mask)
    assert torch.equal(ours.finished, native.finished)
    torch.testing.assert_close(ours.logprobs, native.logprobs, **FP32_MODEL)


def test_an_adapter_goes_out_when_it_has_changed_and_only_then(
    tiny_model_dir: Path, backbone: Backbone
) -> None:
    engine = Elsewhere(tiny_model_dir)
    first = _sample(engine, backbone)
    (name,) = engine.fake.loaded
    asked = engine.fake.asked
    assert sequences(_sample(engine, backbone)) == sequences(first)
    assert engine.fake.loaded == [name]
    assert engine.fake.asked == asked + 12, "nothing is checked again"
    move(backbone, 2)  # through .data, which no version counter notices
    second = _sample(engine, backbone)
    assert sequences(second) == sequences(_sample(NativeEngine(), backbone)) != sequences(first)
    (other,) = engine.fake.loaded
    assert other != name
    root = engine.sync._root
    assert root is not None
    assert [path.name for path in root.iterdir()] == [other]
    engine.sync.close([engine.fake])
    assert engine.fake.loaded == []
    assert not root.exists()


def test_files_go_with_the_engine(tiny_model_dir: Path, backbone: Backbone, tmp_path: Path) -> None:
    engine = Elsewhere(tiny_model_dir)
    engine.sync._parent = tmp_path / "shared"
    _sample(engine, backbone)
    assert len(list((tmp_path / "shared").rglob("adapter_config.json"))) == 1
    del engine
    gc.collect()
    assert not list((tmp_path / "shared").iterdir())


def test_a_vllm_that_would_sample_something_else_is_refused(
    tiny_model_dir: Path, backbone: Backbone, tmp_path: Path
) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(
        ConfigurationError, match=r"base isn't the policy's .* differ by \d\.\d\d nats"
    ):
        _sample(Elsewhere(other), backbone)
    with pytest.raises(ConfigurationError, match="--logprobs-mode processed_logprobs"):
        _sample(Elsewhere(tiny_model_dir, raw=True), backbone)
    with pytest.raises(ConfigurationError, match="--generation-config vllm"):
        _sample(Elsewhere(tiny_model_dir, own_stops=range(110, 267)), backbone)
    with pytest.raises(ConfigurationError, match=r"temperature=0\.001: vLLM raises"):
        _sample(Elsewhere(tiny_model_dir), backbone, temperature=0.001)


def test_full_fine_tuning_is_refused(tiny_model_dir: Path) -> None:
    full = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    for model in (full, full.frozen_copy()):
        with pytest.raises(
            ConfigurationError, match=r"never whole models.*Set model\.backbone\.lora"
        ):
            _sample(Elsewhere(tiny_model_dir), model)


def test_policies_must_recompute_logprobs(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    engine = VLLMServerEngine()
    with pytest.raises(
        ConfigurationError, match=r"VLLMServerEngine samples with .* Set recompute_logprobs: true"
    ):
        RLOOPolicyModule(spec, TokenReward(), engine=engine)
    RLOOPolicyModule(spec, TokenReward(), engine=engine, recompute_logprobs=True)


@pytest.mark.parametrize(
    ("key", "end"), [(None, "--generation-config vllm$"), ("A_KEY", r"--api-key \$A_KEY$")]
)
def test_a_server_that_is_not_there_is_named_with_how_to_start_it(
    backbone: Backbone, key: str | None, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    engine = VLLMServerEngine("http://127.0.0.1:9", timeout=5, api_key_env=key)
    with pytest.raises(
        ConfigurationError,
        match=r"No vLLM server at http://127\.0\.0\.1:9 can be used.*--host 127\.0\.0\.1 --port 9 --enable-lora.*"
        + end,
    ):
        _sample(engine, backbone)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VLLMServerEngine("localhost:8000"), "urls='localhost:8000'"),
        (lambda: VLLMServerEngine([]), r"urls=\[\]"),
        (lambda: VLLMServerEngine(["http://a", "http://a/"]), "several different ones"),
        (lambda: VLLMServerEngine(wait=-1), "wait=-1"),
        (lambda: VLLMServerEngine(timeout=0), "timeout=0"),
        (lambda: VLLMEngine(gpu_memory_utilization=1.5), r"gpu_memory_utilization=1\.5"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_vllm_is_named_with_the_way_out() -> None:
    with pytest.raises(
        ConfigurationError, match=r"pip install 'lit-rlhf\[vllm\]'.*VLLMServerEngine"
    ):
        VLLMEngine()


@pytest.mark.walk
def test_vllm_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, lit_rlhf.rollout as r; r.VLLMServerEngine(); print('vllm' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["grpo_lora", "ppo_lora"])
def test_the_overlay_switches_the_engine(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [CONFIGS / "policy" / f"{name}.yaml", CONFIGS / "overlays" / "vllm.yaml"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *(word for file in files for word in ("-c", str(file))), "--print_config"])
    assert stopped.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "class_path: lit_rlhf.rollout.VLLMServerEngine" in printed
    assert "recompute_logprobs: true" in printed
