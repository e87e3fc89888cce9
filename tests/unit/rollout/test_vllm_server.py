"""A real vLLM server and engine on CPU: `LIT_RLHF_VLLM_PYTHON=/path/to/python pytest -m vllm`.

The variable names an interpreter that has vLLM; without it this one must. Engines owned by the process are tested where
this interpreter has vLLM.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.branches import pack_branches
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, evaluating
from lit_rlhf.modules import GRPOPolicyModule
from lit_rlhf.objectives import TruncatedImportance
from lit_rlhf.rollout import (
    Ahead,
    NativeEngine,
    RolloutEngine,
    RolloutRequest,
    Sampling,
    VLLMEngine,
    VLLMServerEngine,
)
from lit_rlhf.rollout.sampling import truncate_logits
from lit_rlhf.testing import write_tiny_model
from lit_rlhf.types import BranchedBatch, Generation, Prompts
from tests.reference.draws import dependences_of
from tests.reference.generations import LENGTHS, make_prompts, make_request, make_seeds, sequences
from tests.tolerances import FP32_MODEL
from tests.unit.callbacks.standins import quiet_trainer
from tests.unit.modules.policies import CountVowels, prompt_loader
from tests.unit.rollout.real_vllm import HERE, serving_vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # vLLM's, where it is imported here
]
STOPS = list(range(60, 110))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads as wide as vLLM's attention on CPU wants them."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=128, head_dim=32)


@pytest.fixture(scope="module")
def url(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for that model, started as the documentation says."""
    with serving_vllm(model_dir, tmp_path_factory.mktemp("server")) as (server,):
        yield server.url


@pytest.fixture(params=["server", "owned"], scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[RolloutEngine]:
    if request.param == "server":
        yield VLLMServerEngine(request.getfixturevalue("url"))
    elif not HERE:
        pytest.skip("this interpreter has no vLLM")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
            yield VLLMEngine(options={"enforce_eager": True})


@pytest.fixture(scope="module")
def backbone(model_dir: Path) -> Backbone:
    backbone = Backbone.load(ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4)))
    backbone.add_adapter("policy")
    return backbone


def _move(backbone: Backbone, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    for weight in backbone.adapter_weights("policy").values():
        weight.data.normal_(std=0.1, generator=noise)


def _sample(
    engine: RolloutEngine, backbone: Backbone, seeds: Tensor, role: str = "policy", **options: Any
) -> Generation:
    sampling = Sampling(max_new_tokens=10, stop_token_ids=STOPS, **options)
    request = make_request(sampling, len(seeds) // len(LENGTHS), seeds=seeds, role=role)
    return engine.generate(backbone, request)


def _batch(generation: Generation) -> BranchedBatch:
    ids, mask = make_prompts()
    return BranchedBatch(
        **pack_branches(ids, mask, generation.tokens, generation.mask, 0)._asdict()
    )


@torch.no_grad()
def _logprobs(
    backbone: Backbone, generation: Generation, role: str | None, temperature: float = 1.0
) -> Tensor:
    samples = len(generation.tokens) // len(make_prompts()[0])
    with evaluating(backbone):
        out = backbone(
            _batch(generation),
            num_branches=samples,
            role=role,
            logprobs=True,
            temperature=temperature,
        )
    assert out.logprobs is not None
    return out.logprobs


def test_greedy_tokens_are_those_of_the_native_engine(
    engine: RolloutEngine, backbone: Backbone
) -> None:
    _move(backbone, 1)
    ours, native = (
        _sample(each, backbone, make_seeds(6), temperature=0.0) for each in (engine, NativeEngine())
    )
    assert len({len(tokens) for tokens, _ in sequences(ours)}) > 2
    for (mine, _), (theirs, _), logprobs, others in zip(
        sequences(ours), sequences(native), ours.logprobs, native.logprobs, strict=True
    ):
        same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
        until = (
            len(theirs) if same is None else same + 1
        )  # where two tokens are equally likely, either may be taken
        torch.testing.assert_close(logprobs[:until], others[:until], **FP32_MODEL)
        assert same is not None or mine == theirs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_training_forward(
    engine: RolloutEngine, backbone: Backbone, temperature: float
) -> None:
    _move(backbone, 2)
    ours = _sample(engine, backbone, make_seeds(12), temperature=temperature)
    torch.testing.assert_close(
        ours.logprobs, _logprobs(backbone, ours, "policy", temperature), **FP32_MODEL
    )


def test_truncated_logprobs_are_of_what_was_left(engine: RolloutEngine, backbone: Backbone) -> None:
    sampling = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    ours = _sample(engine, backbone, make_seeds(6), **sampling)
    with torch.no_grad(), evaluating(backbone), backbone.use_role("policy"):
        states = backbone._runner(_batch(ours), 1)
        logits = backbone.logits(states.hidden[states.source[ours.mask]])
    logits = truncate_logits(logits, Sampling(**sampling))  # type: ignore[arg-type]
    expected = logits.log_softmax(-1).gather(-1, ours.tokens[ours.mask][:, None])[:, 0]
    assert len(expected) > 6
    assert ours.logprobs is not None
    torch.testing.assert_close(ours.logprobs[ours.mask], expected, **FP32_MODEL)


@pytest.mark.parametrize("least", [0, 5])
def test_rows_end_where_they_should(engine: RolloutEngine, backbone: Backbone, least: int) -> None:
    ours = _sample(engine, backbone, make_seeds(24), min_new_tokens=least)
    ends = {*STOPS, *backbone.eos_token_ids}
    lengths = [len(tokens) for tokens, _ in sequences(ours)]
    assert ours.tokens.shape[1] == max(lengths)
    assert {finished for _, finished in sequences(ours)} == {True, False}
    for tokens, finished in sequences(ours):
        assert not ends & set(tokens[:-1])
        assert (tokens[-1] in ends) == finished
        assert len(tokens) > least if finished else len(tokens) == 10
    assert set(ours.tokens[~ours.mask].tolist()) == {backbone.pad_token_id}
    assert ours.logprobs is not None
    assert not ours.logprobs[~ours.mask].any()
    assert bool((ours.logprobs[ours.mask] < 0).all())


def test_a_sample_depends_on_its_seed_and_not_on_the_batch(
    engine: RolloutEngine, backbone: Backbone
) -> None:
    seeds = make_seeds(12) + 2**62
    first, again = (sequences(_sample(engine, backbone, seeds)) for _ in range(2))
    assert first == again
    assert first != sequences(_sample(engine, backbone, seeds + 1))
    ids, mask = make_prompts()
    sampling = Sampling(max_new_tokens=10, stop_token_ids=STOPS)
    prompts = Prompts(ids[2:4], mask[2:4])
    part = engine.generate(backbone, RolloutRequest(prompts, sampling, seeds[4:8], 2))
    assert sequences(part) == first[4:8]


def test_draws_are_the_distributions_and_independent(
    engine: RolloutEngine, backbone: Backbone
) -> None:
    _move(backbone, 3)
    found = dependences_of(engine, backbone, samples=32, steps=16, role="policy")
    assert max(map(abs, found.values())) < 3.5, found


def test_a_changed_adapter_is_sampled_from_and_the_one_before_goes(
    backbone: Backbone, url: str
) -> None:
    engine = VLLMServerEngine(url)

    def names() -> list[str]:
        models = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
        return [
            model["id"]
            for model in models
            if model["id"].startswith(f"lit-rlhf-{engine.sync._run}")
        ]

    _move(backbone, 3)
    before = _sample(engine, backbone, make_seeds(6))
    (old,) = names()
    _sample(engine, backbone, make_seeds(6))
    assert names() == [old], "nothing has changed"
    old_policy = _logprobs(backbone, before, "policy")
    _move(backbone, 4)
    after = _sample(engine, backbone, make_seeds(6))
    assert sequences(after) != sequences(before)
    torch.testing.assert_close(after.logprobs, _logprobs(backbone, after, "policy"), **FP32_MODEL)
    assert float((before.logprobs - _logprobs(backbone, before, "policy")).abs().max()) > 0.5
    torch.testing.assert_close(before.logprobs, old_policy, **FP32_MODEL)
    (new,) = names()
    assert new != old
    assert engine.sync._root is not None
    assert [path.name for path in engine.sync._root.iterdir()] == [new]
    base = _sample(engine, backbone, make_seeds(6), role="reference")
    torch.testing.assert_close(base.logprobs, _logprobs(backbone, base, None), **FP32_MODEL)
    engine.sync.close(engine.servers.servers)
    assert names() == []


def test_two_iterations_of_grpo(engine: RolloutEngine, model_dir: Path, tmp_path: Path) -> None:
    """A large rate moves the policy far between the iterations; sampled from the old one, the second would show it."""
    seen: list[dict[str, float]] = []

    class Logged(GRPOPolicyModule):
        def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
            super().log_dict(dictionary, *args, **kwargs)
            if "train/objective/scores" in dictionary:
                seen.append({name: float(value) for name, value in dictionary.items()})

    module = Logged(
        ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4)),
        CountVowels(),
        engine=engine,
        num_samples=4,
        sampling=Sampling(max_new_tokens=8),
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
    )
    quiet_trainer(tmp_path, [], max_epochs=1, enable_checkpointing=False).fit(
        module, prompt_loader(model_dir)
    )
    assert len(seen) == 2
    assert seen[1]["train/objective/kl"] > 0.1
    for metrics in seen:
        assert metrics["train/sampling/sampling_logp_difference/max"] < 10 * FP32_MODEL["atol"]
        for which in ("min", "mean", "max"):
            assert metrics[f"train/sampling/importance_sampling_ratio/{which}"] == pytest.approx(
                1, abs=1e-3
            )


def test_a_step_ahead(model_dir: Path, url: str, tmp_path: Path) -> None:
    """Older weights show in the log-probs, as far as the policy moved; the corrected ratios stay about 1."""
    found: dict[int, list[dict[str, float]]] = {}
    for staleness in (0, 1):
        seen = found[staleness] = []

        class Logged(GRPOPolicyModule):
            def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
                super().log_dict(dictionary, *args, **kwargs)
                if "train/objective/scores" in dictionary:
                    seen.append(dictionary)  # noqa: B023 - used within this turn

        module = Logged(
            ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4)),
            CountVowels(),
            engine=Ahead(VLLMServerEngine(url), staleness),
            num_samples=4,
            sampling=Sampling(max_new_tokens=8),
            recompute_logprobs=True,
            importance_correction=TruncatedImportance(),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        )
        trainer = quiet_trainer(tmp_path / str(staleness), [], max_epochs=1)
        trainer.fit(module, prompt_loader(model_dir, batch_size=2))
    gap = "train/sampling/sampling_logp_difference/mean"
    assert [each["train/rollout/staleness"] for each in found[0]] == [0, 0, 0, 0]
    assert [each["train/rollout/staleness"] for each in found[1]] == [0, 1, 1, 1]
    assert max(each[gap] for each in found[0]) < 1e-3
    assert all(1e-3 < each[gap] < 1 for each in found[1][1:])
    for each in found[1]:
        assert 0.8 < each["train/sampling/importance_sampling_ratio/mean"] < 1.2


def test_another_base_is_refused(url: str, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1, hidden_size=128, head_dim=32)
    backbone = Backbone.load(ModelSpec(name=str(other), lora=LoraSpec(rank=4)))
    backbone.add_adapter("policy")
    with pytest.raises(ConfigurationError, match=r"base isn't the policy's .*differ by"):
        _sample(VLLMServerEngine(url), backbone, make_seeds(6))


def test_what_the_server_refuses_is_passed_on(backbone: Backbone, url: str) -> None:
    large = Backbone.load(backbone.spec)
    large.add_adapter("policy", lora=LoraSpec(rank=32))
    with pytest.raises(
        ConfigurationError, match=r"can't load the adapter.*LoRA rank 32 .*--max-lora-rank"
    ):
        _sample(VLLMServerEngine(url), large, make_seeds(6))
