"""What policies do without gradients in a dry run: sampling, scoring, and what their losses need of frozen models."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from lit_rlhf.estimate.dry_run import DryRun, Phase
from lit_rlhf.models import RewardSource, evaluating
from lit_rlhf.models.flops import generation_flops
from lit_rlhf.models.kernels.packed import PackedStep
from lit_rlhf.modules import PolicyModule
from lit_rlhf.rewards import Reward
from lit_rlhf.rewards.model import score_rows
from lit_rlhf.rewards.retokenize import TokenRows
from lit_rlhf.rollout import HFEngine, NativeEngine
from lit_rlhf.rollout.native import Decoder
from lit_rlhf.rollout.sampling import draw_tokens
from lit_rlhf.rollout.steps import DecodeStep, ModelStep, choose_step, recordable

_BUDGET = 8192
"""Tokens that are scored at a time where a reward doesn't say."""


def collect(run: DryRun, module: PolicyModule) -> Iterator[Phase]:
    """Rollout, reward and reference, those that run here."""
    if isinstance(module.engine, NativeEngine | HFEngine):
        yield _rollout(run, module)
    scoring = list(_scoring(module.reward))
    if scoring:
        yield _measured(run, "reward", lambda: _score(run, scoring))

    def evaluate() -> None:
        with evaluating(module.backbone):
            run.evaluate()

    yield _measured(run, "reference", evaluate)


def _rollout(run: DryRun, module: PolicyModule) -> Phase:
    """The last steps of a decode in which no row has ended, its caches full."""
    load, count, backbone = run.workload, run.count, module.backbone
    prompts, samples = _decoded_at_once(run, module)
    lengths = torch.full((prompts,), load.prompt_tokens)
    ids = torch.zeros(prompts, load.prompt_tokens, dtype=torch.int64)
    rows = torch.zeros(prompts * samples)
    sampling = replace(module.sampling, top_p=1.0)  # else the numbers would be looked at
    launched, recorded = 0, False
    with run.simulated(), torch.no_grad(), evaluating(backbone), backbone.use_role("policy"):
        count.forget_peak()
        with count.part("packed weights"):
            step = _step(module, load.completion_tokens)
            recorded = run.kind == "cuda" and recordable(backbone, load.completion_tokens)
        with count.part("temporaries", logits=run.vocabulary):
            decoder = Decoder(backbone, step, ids, lengths, samples)
            # As if all but the last tokens had been generated.
            cache, room = decoder.cache, decoder.pace.room
            for layer in cache.own_layers:
                layer.own = layer.own.roomier(-(-load.completion_tokens // room) * room)
                count.assign("key-value cache", *layer.own, *(layer.shared or ()))
            cache.place.filled = cache.start + max(load.completion_tokens - 2, 0)
            for _ in range(2):
                before = count.kernels
                draw_tokens(decoder.logits, rows.double(), sampling)
                decoder.advance(rows.long())
                launched = count.kernels - before
        peak, cached = count.peak(), count.now()["key-value cache"]
    asked = torch.ones(load.prompts, load.prompt_tokens)
    answered = torch.ones(load.prompts * load.branches, load.completion_tokens)
    flops = generation_flops(backbone, "policy", asked, answered)
    rounds = -(-load.prompts * load.branches // len(rows))
    passes = rounds * load.completion_tokens
    packed = isinstance(step, PackedStep)
    return Phase("rollout", peak, float(flops), launched, passes, cached, recorded, packed)


def _decoded_at_once(run: DryRun, module: PolicyModule) -> tuple[int, int]:
    """Prompts, and samples of each; transformers' own generation has a row for each sample."""
    prompts, samples = run.workload.prompts, run.workload.branches
    if not isinstance(module.engine, NativeEngine):
        return prompts * samples, 1
    most = module.engine.max_batch_size
    if most is None or prompts * samples <= most:
        return prompts, samples
    return max(most // samples, 1), min(samples, most)


def _step(module: PolicyModule, steps: int) -> DecodeStep:
    quantized = module.backbone.spec.quantization != "none"  # which a dry run's layers don't show
    if quantized or not isinstance(module.engine, NativeEngine):
        return ModelStep(module.backbone)
    return choose_step(module.backbone, steps)


def _measured(run: DryRun, name: str, work: Callable[[], object]) -> Phase:
    with run.simulated(), torch.no_grad():
        run.count.forget_peak()
        run.flops, before = 0.0, run.count.kernels
        with run.count.part("temporaries", logits=run.vocabulary):
            work()
        return Phase(name, run.count.peak(), run.flops, run.count.kernels - before)


def _score(run: DryRun, scoring: list[tuple[Reward, RewardSource]]) -> None:
    rollout = run.scored
    prompts, made = rollout.prompts, rollout.completions
    rows = TokenRows(prompts.ids, prompts.mask, made.tokens, made.mask)
    for reward, source in scoring:
        path = str(getattr(reward, "path", type(reward).__name__))
        budget = int(getattr(reward, "batch_tokens", _BUDGET))
        score_rows(source.backbone, rows, str(source.role), budget, path)


def _scoring(reward: Reward) -> Iterator[tuple[Reward, RewardSource]]:
    """The reward models in a reward."""
    members = reward.members()
    for member in members:
        yield from _scoring(member)
    source = None if members else reward.source()
    if source is not None:
        yield reward, source
