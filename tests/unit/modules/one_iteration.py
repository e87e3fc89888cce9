"""One iteration of an on-policy module without a Trainer: what it logs, what becomes of its parameters."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules import (
    DistillationPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    Teacher,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import NativeEngine, RolloutRequest
from lit_rlhf.types import Completions, DemonstrationBatch, Generation, PromptBatch, Scores
from tests.unit.modules.policies import prompt_batch

PROMPTS = ["how was the film? ", "a", "food, then", "x y z", "well well", "12"]


class TokenReward(Reward):
    """Share of a response's tokens with an even id: an equal share in some groups, another one in others."""

    def score(self, completions: Completions) -> Scores:
        even = (completions.tokens % 2 == 0) & completions.response_mask
        return Scores((even.sum(-1) / completions.response_mask.sum(-1).clamp_min(1)).float())


class SlightlyOffEngine(NativeEngine):
    """Reports log-probs that are a little off, as engines of other arithmetic do."""

    def generate(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        generation = super().generate(backbone, request)
        assert generation.logprobs is not None
        off = 0.4 * torch.sin(generation.tokens.float())
        return replace(
            generation, logprobs=torch.where(generation.mask, generation.logprobs + off, 0.0)
        )


class StrangeTeacher(Teacher):
    """The student as it was built, with other weights."""

    def attach(self, policy: Backbone, dtype: DTypeName | None = None) -> None:
        self.model = policy.frozen_copy()
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=noise))

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        return self.model, None


def make_policy(
    kind: type[PolicyModule], spec: ModelSpec, reward: Reward, **options: Any
) -> PolicyModule:
    """A policy of any kind, with what it can't be made without, and without what it has no use for."""
    if issubclass(kind, DistillationPolicyModule):
        options = {"teacher": StrangeTeacher()} | {k: v for k, v in options.items() if k != "kl"}
    if issubclass(kind, OnlineDPOPolicyModule):
        options.pop("kl", None)  # theirs is the loss's beta
    return kind(spec, reward, **options)


def text_batch(model_dir: Path) -> DemonstrationBatch:
    """Four rows: a prompt of two tokens and three to imitate."""
    ids = prompt_batch(model_dir, ["some plain text"])["input_ids"][0, :5].repeat(4, 1)
    return DemonstrationBatch(
        input_ids=ids,
        branch_ids=torch.tensor([[0, 0, 1, 1, 1]]).repeat(4, 1),
        position_ids=torch.arange(5).repeat(4, 1),
        index=torch.arange(4),
    )


@cache
def full_batch(model_dir: Path) -> PromptBatch:
    """Six prompts, with text for those that want it."""
    return {**prompt_batch(model_dir, PROMPTS), "text": text_batch(model_dir)}


def build(
    module: PolicyModule, template: Backbone | None = None, moved: float = 0.0
) -> PolicyModule:
    """Build its model, from a copy of a loaded backbone where one is given, and move the policy from its reference."""
    load = patch.object(Backbone, "load", lambda spec, lm_head: _copied(template))
    with load if template is not None else nullcontext():
        module.configure_model()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and moved:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=moved)
    return module.train()


def template_of(spec: ModelSpec, *engines: NativeEngine) -> Backbone:
    """A backbone to copy, whose decode by some engines is proved already."""
    backbone = Backbone.load(spec)
    for engine in engines:
        engine.check(backbone)
    return backbone


def _copied(template: Backbone | None) -> Backbone | None:
    """With the same tokenizer."""
    kept = getattr(template, "tokenizer", None)
    return copy.deepcopy(template, {id(kept): kept})


def iterate(module: PolicyModule, batch: PromptBatch, lr: float = 0.02) -> dict[str, float]:
    """Take one step of training; returns what was logged."""
    logged: dict[str, float] = {}
    groups = [{"lr": lr} | group for group in module.parameter_groups() if group["params"]]
    optimizer = torch.optim.SGD(groups, lr=lr)
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()  # noqa: E731
    module._trainer = SimpleNamespace(
        world_size=1, strategy=None, global_rank=0, precision_plugin=None
    )  # type: ignore[assignment]
    stand_ins = {
        "manual_backward": backward,
        "optimizers": lambda: optimizer,
        "lr_schedulers": lambda: None,
        "gradient_sync": lambda enabled: nullcontext(),
        "log_dict": lambda metrics, **_: logged.update({k: float(v) for k, v in metrics.items()}),
    }
    for name, stand_in in stand_ins.items():
        object.__setattr__(module, name, stand_in)
    module.training_step(batch, 0)
    return logged


def parameters_of(module: PolicyModule) -> Tensor:
    """All trained parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
