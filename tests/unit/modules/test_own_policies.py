"""Algorithms of one's own: what becomes of slips in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, ReduceLROnPlateau

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import PolicyModule, REINFORCEPolicyModule
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EvaluatedRollout, asked
from tests.unit.modules.one_iteration import TokenReward, build, iterate, parameters_of
from tests.unit.modules.policies import fit, prompt_batch


class Surprise(PolicyModule):
    """Advantages of the policy's own log-probs, as the given function makes them."""

    made: Callable[[Tensor], Tensor]

    def estimate(self, rollout: EvaluatedRollout) -> EvaluatedRollout:
        """Log-probs, with their gradient."""
        return rollout.with_advantages(self.made(asked(self.policy_forward(rollout).logprobs)))


def surprise(model_dir: Path, made: Callable[[Tensor], Tensor]) -> Surprise:
    spec = ModelSpec(name=str(model_dir), lora=LoraSpec(rank=4))
    module = Surprise(spec, TokenReward(), sampling=Sampling(max_new_tokens=4))
    module.made = made
    return build(module, moved=0.1)


def test_no_gradient_goes_through_advantages(tiny_model_dir: Path) -> None:
    ends = []
    for made in (torch.Tensor.clone, torch.Tensor.detach):
        module = surprise(tiny_model_dir, made)
        iterate(module, prompt_batch(tiny_model_dir))
        ends.append(parameters_of(module))
    assert torch.equal(*ends)


def test_advantages_of_numpy_are_refused(tiny_model_dir: Path) -> None:
    module = surprise(tiny_model_dir, lambda logprobs: logprobs.detach().numpy())
    with pytest.raises(ConfigurationError, match=r"tensor of \(8, 4\).*not a ndarray of \(8, 4\)"):
        iterate(module, prompt_batch(tiny_model_dir))


def test_advantages_that_are_not_finite_are_refused(tiny_model_dir: Path) -> None:
    module = surprise(tiny_model_dir, lambda logprobs: (logprobs - logprobs) / 0)
    said = r"Surprise made advantages that are not finite for 8 of 8.*completion 0 of prompt 0"
    with pytest.raises(ConfigurationError, match=said):
        iterate(module, prompt_batch(tiny_model_dir))


def stepped(schedule: type[LRScheduler], **told: object) -> Callable[[PolicyModule], Any]:
    def configure_optimizers(module: PolicyModule) -> Any:
        optimizer = torch.optim.SGD(module.parameter_groups()[0]["params"], lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), **told}}

    return configure_optimizers


def two_optimizers(module: PolicyModule) -> Any:
    one, *others = module.parameter_groups()[0]["params"]
    return [torch.optim.SGD(part, lr=0.1) for part in ([one], others)]


@pytest.mark.filterwarnings("ignore:The lr scheduler dict contains")  # Lightning's, of these
@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize(
    ("configure", "said"),
    [
        (stepped(ConstantLR), r"ConstantLR with interval='epoch'.*with each optimizer step"),
        (stepped(ConstantLR, interval="step", frequency=2), r"frequency=2"),
        (stepped(ReduceLROnPlateau, interval="step", monitor="x"), r"ReduceLROnPlateau with"),
        (two_optimizers, r"2 optimizers, and a policy steps one.*parameter_groups"),
        (lambda module: None, r"gave 0 optimizers"),
    ],
)
def test_own_optimizers_that_would_be_stepped_otherwise_are_refused(
    configure: Callable[[PolicyModule], Any], said: str, tiny_model_dir: Path
) -> None:
    kind = type("Own", (REINFORCEPolicyModule,), {"configure_optimizers": configure})
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    with pytest.raises(ConfigurationError, match=said):
        fit(kind(spec, TokenReward(), sampling=Sampling(max_new_tokens=4)), tiny_model_dir)
