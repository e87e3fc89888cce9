"""What a rollout is divided into, and what is logged of its pairs: by hand, without a model."""

import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import OnlineDPOPolicyModule, RLOOPolicyModule, Updates
from lit_rlhf.modules.online import PairedRollout
from lit_rlhf.rewards import LengthReward
from lit_rlhf.types import EvaluatedRollout, Generation, Prompts, Scores

SPEC = ModelSpec(name="never loaded")


def parts_of_a_rollout(prompts: int, samples: int) -> dict[str, object]:
    rows = prompts * samples
    mask = torch.ones(rows, 1, dtype=torch.bool)
    generation = Generation(torch.arange(rows)[:, None], mask, torch.ones(rows, dtype=torch.bool))
    zeros = torch.zeros(rows, 1)
    return {
        "prompts": Prompts(torch.arange(prompts)[:, None], torch.ones(prompts, 1).bool()),
        "completions": generation,
        "scores": Scores(torch.zeros(rows)),
        "old_logprobs": zeros,
        "ref_logprobs": zeros,
    }


def test_each_epoch_takes_all_prompts_in_an_order_of_its_own() -> None:
    module = RLOOPolicyModule(SPEC, LengthReward(), updates=Updates(epochs=2, minibatches=4))
    rollout = EvaluatedRollout(**parts_of_a_rollout(16, 4))  # type: ignore[arg-type]
    dealt = [part.prompts.ids.flatten() for part in module.schedule(rollout)]
    epochs: list[Tensor] = [torch.cat(dealt[:4]), torch.cat(dealt[4:])]
    for epoch in epochs:
        assert_close(epoch.sort().values, torch.arange(16))
    assert not torch.equal(*epochs)


def test_the_preferred_completion_is_logged_as_the_chosen_one() -> None:
    module = OnlineDPOPolicyModule(SPEC, LengthReward())
    pairs = PairedRollout(**parts_of_a_rollout(2, 2), wins=torch.tensor([0.2, 0.8, 1.0, 0.0]))  # type: ignore[arg-type]
    logprobs = torch.tensor([[-3.0], [-1.0], [-1.0], [-2.0]])
    metrics = module.loss_of_pairs(logprobs, pairs).metrics
    assert_close(metrics["logps/chosen"], torch.tensor([-1.0, -1.0]))
    assert_close(metrics["logps/rejected"], torch.tensor([-3.0, -2.0]))
