"""What is asked of an engine is checked once, whichever engine it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.rollout import HFEngine, NativeEngine, RolloutEngine, RolloutRequest, Sampling
from lit_rlhf.types import Generation, Prompts
from tests.reference.generations import make_prompts, make_request


class OwnEngine(RolloutEngine):
    """One of a user: the least that it must have."""

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        weight = next(backbone.parameters())
        assert not (weight * 1).requires_grad
        tokens = torch.full((len(request.seeds), 1), 7)
        return Generation(tokens, tokens > 0, tokens[:, 0] > 0)


def some(**options: Any) -> RolloutRequest:
    return make_request(Sampling(), **options)


@pytest.mark.parametrize("change", ["left", "gap", "shape", "numbers"])
def test_prompts_that_are_not_right_padded_are_refused(change: str) -> None:
    ids, mask = make_prompts()
    gap = mask.clone()
    gap[0, 2] = False
    wrong = {
        "left": Prompts(ids.flip(1), mask.flip(1)),
        "gap": Prompts(ids, gap),
        "shape": Prompts(ids, mask[:, :-1]),
        "numbers": Prompts(ids, mask.long()),
    }
    with pytest.raises(ConfigurationError, match="take right-padded prompts: ids of shape"):
        some(prompts=wrong[change])


def test_an_empty_prompt_is_refused_by_its_number() -> None:
    ids, mask = make_prompts()
    mask[3:5] = False
    with pytest.raises(DataError, match="Prompt 3 of the batch has no tokens"):
        some(prompts=Prompts(ids, mask))


def test_another_number_of_seeds_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="6 prompts with num_samples=2 need 12 seeds"):
        some(num_samples=2, seeds=torch.arange(6))
    ids, mask = make_prompts()
    with pytest.raises(ConfigurationError, match="0 prompts with num_samples=1 need 0 seeds"):
        some(prompts=Prompts(ids[:0], mask[:0]), seeds=torch.arange(0))


@pytest.mark.parametrize("engine", [NativeEngine(), HFEngine(), OwnEngine()])
def test_what_exceeds_the_context_is_refused_by_every_engine(
    tiny_model_dir: Path, engine: RolloutEngine
) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    with pytest.raises(ConfigurationError, match=r"max_new_tokens=506 need 513 positions"):
        engine.generate(backbone, make_request(Sampling(max_new_tokens=506)))
    assert len(engine.generate(backbone, make_request(Sampling(max_new_tokens=1))).tokens) == 6


@pytest.mark.parametrize("engine", [NativeEngine(), HFEngine(), OwnEngine()])
def test_a_stop_token_that_is_no_token_is_refused_by_every_engine(
    tiny_model_dir: Path, engine: RolloutEngine
) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    size = backbone.vocabulary_size
    with pytest.raises(
        ConfigurationError, match=rf"stop_token_ids={size}\b.*model's {size} tokens"
    ):
        engine.generate(backbone, make_request(Sampling(stop_token_ids=[3, size])))
    last = Sampling(max_new_tokens=1, stop_token_ids=[size - 1])
    assert len(engine.generate(backbone, make_request(last)).tokens) == 6


class Wrong(OwnEngine):
    """Changes what it has sampled."""

    def __init__(self, change: Callable[[Generation], Any]) -> None:
        self.change = change

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Any:
        return self.change(super().sample(backbone, request))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: None, r"Wrong\.sample gave a NoneType: give a Generation"),
        (lambda found: replace(found, mask=found.mask.long()), r"gave mask as .*boolean tensor"),
        (lambda found: replace(found, finished=None), r"gave finished as a NoneType"),
        (lambda found: replace(found, tokens=found.tokens.tolist()), r"gave tokens as a list"),
        (lambda found: replace(found, tokens=found.tokens[::2]), r"gave tokens .*\(3, 1\) for 6"),
        (
            lambda found: replace(found, tokens=found.tokens.repeat(1, 3)),
            r"gave mask .*\(6, 1\).*tensor \(6, 3\): completions without their prompts",
        ),
        (lambda found: replace(found, logprobs=torch.zeros(6)), r"gave logprobs .*\(6,\)"),
        (
            lambda found: replace(found, tokens=found.tokens[:, :0], mask=found.mask[:, :0]),
            r"gave tokens .*\(6, 0\).*width of 1 or more",
        ),
    ],
)
def test_what_an_engine_gives_is_checked(
    change: Callable[[Generation], Any], said: str, tiny_model_dir: Path
) -> None:
    backbone = Backbone.load(ModelSpec(name=str(tiny_model_dir)))
    with pytest.raises(ConfigurationError, match=said):
        Wrong(change).generate(backbone, make_request(Sampling(max_new_tokens=1)))
