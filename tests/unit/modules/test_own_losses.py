"""Losses of one's own: what they give is held to its shape before anything reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import (
    GroupPolicyModule,
    PreferenceModule,
    RewardModelModule,
    RLHFModule,
    SupervisedModule,
)
from lit_rlhf.objectives import PairScoreLoss, PairwiseLoss, Surrogate
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import LossOutput
from tests.unit.modules.one_iteration import TokenReward, build, iterate, text_batch
from tests.unit.modules.policies import prompt_batch
from tests.unit.modules.test_own_loops import DATA

Made = Callable[[Tensor], Any]
SLIPS: list[tuple[Made, str]] = [
    (torch.Tensor.mean, r"a Tensor of the shape \(\).*\(4,\), unreduced"),
    (lambda gap: gap[:, None], r"of the shape \(4, 1\)"),
    (lambda gap: torch.stack([gap, gap], -1), r"of the shape \(4, 2\)"),
]
# Of the scores alone: what preference losses give is typed, and tests check types.
OTHERS: list[tuple[Made, str]] = [
    (lambda gap: 1.0, r"a float of the shape \(\)"),
    (lambda gap: gap.detach().numpy(), r"a ndarray of the shape \(4,\)"),
]


class OwnPairs(PairwiseLoss):
    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made

    def forward(self, chosen: Any, rejected: Any) -> Any:
        return self.made(rejected.logratios - chosen.logratios)


class OwnScores(PairScoreLoss):
    def __init__(self, made: Made) -> None:
        self.made = made

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Any:
        return self.made(rejected - chosen)


def spec_of(model_dir: Path) -> ModelSpec:
    return ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4))


def step(module: RLHFModule, kind: type[RLHFModule], model_dir: Path) -> None:
    module.configure_model()
    data = DATA[kind](str(model_dir))
    data.prepare_data()
    data.setup("fit")
    module.validation_step(next(iter(data.train_dataloader())), 0)


@pytest.mark.parametrize(("made", "said"), SLIPS)
def test_losses_of_pairs(made: Made, said: str, tiny_model_dir: Path) -> None:
    spec = spec_of(tiny_model_dir)
    for kind, loss in ((PreferenceModule, OwnPairs(made)), (RewardModelModule, OwnScores(made))):
        module: RLHFModule = kind(spec, loss)
        with pytest.raises(
            ConfigurationError, match=rf"The loss of {type(loss).__name__} .*{said}"
        ):
            step(module, kind, tiny_model_dir)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (PreferenceModule, lambda self, policy, reference, batch: policy.logprobs.mean()),
        (RewardModelModule, lambda self, scores, batch: scores.mean()),
        (SupervisedModule, lambda self, out, batch: out.logprobs),
    ],
)
def test_a_tensor_in_place_of_an_output(
    kind: type[RLHFModule], made: Callable[..., Tensor], tiny_model_dir: Path
) -> None:
    own = type("Own", (kind,), {"loss": made})
    with pytest.raises(ConfigurationError, match=r"gave a Tensor: give LossOutput\(loss\)"):
        step(own(spec_of(tiny_model_dir)), kind, tiny_model_dir)


class OwnSurrogate(Surrogate):
    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        self.made = made

    def __call__(self, logprobs: Tensor, *others: Tensor) -> Any:
        return self.made(-logprobs)


def policy_of(made: Callable[[Tensor], Any], model_dir: Path) -> GroupPolicyModule:
    spec, short = spec_of(model_dir), Sampling(max_new_tokens=4)
    options = {"surrogate": OwnSurrogate(made), "sampling": short, "num_samples": 2}
    return build(GroupPolicyModule(spec, TokenReward(), **options))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda loss: loss, r"of OwnSurrogate gave a Tensor"),
        (lambda loss: LossOutput(loss.mean()), r"of the shape \(\): it must be .* \(16, 4\)"),
        (lambda loss: LossOutput(loss.sum(-1)), r"of the shape \(16,\)"),
    ],
)
def test_surrogates(made: Callable[[Tensor], Any], said: str, tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        iterate(policy_of(made, tiny_model_dir), prompt_batch(tiny_model_dir))


def test_supervised_losses_of_sequences(tiny_model_dir: Path) -> None:
    made = {"loss": lambda self, out, batch: LossOutput(-out.logprobs.mean())}
    own = type("Own", (SupervisedModule,), made)
    module = own(spec_of(tiny_model_dir))
    module.configure_model()
    with pytest.raises(ConfigurationError, match=r"loss of Own gave .* shape \(\).*\(4, 3\)"):
        module.validation_step(text_batch(tiny_model_dir), 0)


def test_metrics_may_be_plain_numbers(tiny_model_dir: Path) -> None:
    module = policy_of(lambda loss: LossOutput(loss, {"half": 0.5}), tiny_model_dir)
    assert iterate(module, prompt_batch(tiny_model_dir))["train/half"] == 0.5


class Forgetful(OwnPairs):
    def __init__(self) -> None:
        self.beta = 0.1


def test_a_loss_that_forgets_to_begin_as_a_module(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Forgetful\.__init__ must begin with super\(\)"):
        PreferenceModule(spec_of(tiny_model_dir), Forgetful())
