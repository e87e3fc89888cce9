"""PPO-ptx: the text's gradient on top of PPO's, and the text that it needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rlhf.data import DemonstrationDataModule, PlainText, PromptTextDataModule, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import PolicyModule, PPOPolicyModule, PPOPtxPolicyModule, Updates
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing import tiny_prompts
from lit_rlhf.types import PromptBatch
from tests.tolerances import FP32
from tests.unit.modules.one_iteration import TokenReward, build, full_batch, iterate
from tests.unit.modules.policies import make_trainer, prompt_batch

ONCE: dict[str, Any] = {
    "updates": Updates(epochs=1, max_grad_norm=0.0),
    "sampling": Sampling(max_new_tokens=4),
}


def _step(module: PolicyModule, batch: PromptBatch) -> dict[str, Tensor]:
    """Change of each parameter in a step of plain descent."""
    before = {name: p.detach().clone() for name, p in build(module).named_parameters()}
    iterate(module, batch, lr=1e-2)
    return {
        name: p.detach() - before[name] for name, p in module.named_parameters() if p.requires_grad
    }


def _ragged(model_dir: Path) -> PromptBatch:
    """Text of two lengths."""
    batch = full_batch(model_dir)
    text = {name: value.clone() for name, value in batch["text"].items()}
    text["branch_ids"][1:3, 4] = -1
    text["input_ids"][0] += 3
    return {**batch, "text": text}


@pytest.mark.parametrize("budget", [100_000, 1])
def test_a_step_is_that_of_ppo_and_that_of_the_text(tiny_model_dir: Path, budget: int) -> None:
    spec, batch = ModelSpec(name=str(tiny_model_dir)), _ragged(tiny_model_dir)
    once = ONCE | {"updates": replace(ONCE["updates"], microbatch_tokens=budget)}
    ppo = _step(PPOPolicyModule(spec, TokenReward(), **once), batch)
    module = PPOPtxPolicyModule(spec, TokenReward(), ptx_coef=3.0, **once)
    both = _step(module, batch)
    fresh = build(PPOPolicyModule(spec, TokenReward(), **ONCE))
    ids, counts = batch["text"]["input_ids"], batch["text"]["branch_ids"] > 0
    nll = torch.zeros(())
    for row in range(4):  # row by row, through plain logits
        width = int((batch["text"]["branch_ids"][row] >= 0).sum())
        hidden = fresh.backbone.decoder(input_ids=ids[row : row + 1, :width]).last_hidden_state
        logprobs = fresh.backbone.logits(hidden[0]).log_softmax(-1)
        nll = nll - sum(logprobs[t - 1, ids[row, t]] for t in range(width) if counts[row, t])
    (3.0 * nll / counts.sum()).backward()
    parameters = dict(fresh.named_parameters())
    assert both.keys() == ppo.keys()
    moved = 0.0
    for name, change in both.items():
        gradient = parameters[name].grad
        text = torch.zeros_like(change) if gradient is None else -1e-2 * gradient
        torch.testing.assert_close(change - ppo[name], text, **FP32)
        moved += float(text.abs().sum())
    assert moved > 0.1


def test_each_row_of_text_is_read_once_an_epoch(tiny_model_dir: Path) -> None:
    options = ONCE | {"updates": Updates(epochs=2, minibatches=3)}
    module = build(
        PPOPtxPolicyModule(ModelSpec(name=str(tiny_model_dir)), TokenReward(), **options)
    )
    read: list[int] = []
    text_loss = module.text_loss
    batch = _ragged(tiny_model_dir)
    batch["text"]["input_ids"][:, 0] = torch.arange(4)
    object.__setattr__(
        module,
        "text_loss",
        lambda text: read.extend(text["input_ids"][:, 0].tolist()) or text_loss(text),
    )
    logged = iterate(module, batch)
    assert [sorted(read[:4]), sorted(read[4:])] == [[0, 1, 2, 3]] * 2
    assert logged["train/loss/ptx_avg"] > 1.0


def test_missing_text_is_said(tiny_model_dir: Path) -> None:
    spec = ModelSpec(name=str(tiny_model_dir))
    with pytest.raises(ConfigurationError, match=r"prompts alone\. Use PromptTextDataModule"):
        iterate(
            build(PPOPtxPolicyModule(spec, TokenReward(), **ONCE)), prompt_batch(tiny_model_dir)
        )
    many = PPOPtxPolicyModule(
        spec, TokenReward(), **(ONCE | {"updates": Updates(epochs=1, minibatches=5)})
    )
    with pytest.raises(
        ConfigurationError, match=r"4 row\(s\) of text per process.*updates.minibatches=5"
    ):
        iterate(build(many), full_batch(tiny_model_dir))
    with pytest.raises(ConfigurationError, match="ptx_coef=0"):
        PPOPtxPolicyModule(spec, TokenReward(), ptx_coef=0.0)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_trainer_runs_it(tiny_model_dir: Path) -> None:
    tokenizer = str(tiny_model_dir)
    rows = [{"text": "this is what was there before. "}] * 4
    text = DemonstrationDataModule(
        RowsSource(rows), tokenizer=tokenizer, format=PlainText(), batch_size=2
    )
    data = PromptTextDataModule(
        RowsSource(tiny_prompts(8)), tokenizer=tokenizer, text=text, batch_size=4
    )
    module = PPOPtxPolicyModule(
        ModelSpec(name=tokenizer),
        TokenReward(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=5e-3),
        **ONCE,
    )
    trainer = make_trainer(max_epochs=5)
    losses: list[float] = []
    finish = module.finish_iteration
    object.__setattr__(
        module,
        "finish_iteration",
        lambda rollout: losses.append(module.means.compute()["loss/ptx_avg"]) or finish(rollout),
    )
    trainer.fit(module, datamodule=data)
    assert len(losses) == 10
    assert losses[-1] < 0.5 * losses[0]
