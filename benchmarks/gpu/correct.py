"""Is it right there: what CPU and GPU compute alike, what each precision does, export, and resuming bit for bit."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu.methods import ADAM, KINDS, make
from benchmarks.gpu.result import Result
from benchmarks.gpu.setting import Rows, Setting
from benchmarks.quiet import History
from lit_rlhf.callbacks import IterationCheckpoint
from lit_rlhf.functional import chunked_logprobs
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.models.kernels.attention import flash_serves, largest_gap
from lit_rlhf.modules import PPOPolicyModule, Updates
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.seeding import generator, uniforms
from lit_rlhf.testing import tiny_demonstrations, tiny_preferences, tiny_prompts
from lit_rlhf.types import Prompts

# In float32, TF32 off. Sums run in another order on each device, and training carries what that rounds.
FORWARD, GRADIENT, CURVE, SAMPLED = 1e-5, 1e-4, 2e-3, 0.01
EXPORT = 1e-3
HALF = 0.05  # bfloat16 rounds each number to 0.004 of it
WATCHED = {
    "SFT": "train/loss",
    "reward model": "train/loss",
    "DPO": "train/loss",
    "PPO": "train/grad_norm",
    "GRPO": "train/grad_norm",
}
SHORT: dict[str, Any] = {"tokens": 8, "optimizer": ADAM}


def same_as_cpu(setting: Setting, result: Result) -> None:
    """A tiny model in float32 on the CPU and here: uniforms, passes, gradients, samples, and curves of training."""
    seeds = torch.randint(2**62, (4096,), generator=generator("seeds"))
    there = uniforms(seeds.to(setting.device), 3).cpu()
    result.check("uniforms that differ", float((uniforms(seeds, 3) != there).sum()), 0.0)
    for branching in ("shared", "expanded"):
        ours, theirs = (_passes(setting, device, branching) for device in _devices(setting))
        for name, value in ours.items():
            limit = GRADIENT if name == "gradient" else FORWARD
            result.check(f"{name}, {branching}", _distance(theirs[name], value), limit)
    if setting.on_gpu:
        _branched_kernels(setting, result)
        _fused_logprobs(setting, result)
    ours, theirs = (_samples(setting, device) for device in _devices(setting))
    other = float((ours != theirs).float().mean()) if ours.shape == theirs.shape else 1.0
    result.check("share of sampled tokens that differ", other, SAMPLED)
    for name, metric in WATCHED.items():
        with result.attempt(f"curve of {name}"):
            ours, theirs = (_curve(setting, name, metric, device) for device in _devices(setting))
            result.check(f"curve of {metric}, {name}", _distance(theirs, ours), CURVE)


def precisions(setting: Setting, result: Result) -> None:
    """Each method in float32 weights under mixed precision, in full and with LoRA: it learns, and skips no step."""
    full, lora = ("full", None), ("LoRA", LoraSpec(rank=8))
    ways = [("bf16-mixed", *full), ("bf16-mixed", *lora)]
    ways += [("16-mixed", *full)] if setting.on_gpu else []
    for precision, what, spec in ways:
        for name in WATCHED:
            title = f"{name}, {precision}, {what}"
            with result.attempt(title):
                _fit_mixed(setting, result, name, precision, spec, title)


def export(setting: Setting, result: Result) -> None:
    """What a policy that was trained here exports, read by transformers: the same logits."""
    module = PPOPolicyModule(**_ppo(setting))
    setting.trainer([]).fit(module, setting.data("prompts", 8, tiny_prompts(16)))
    backbone = module.backbone.to(setting.device)
    module.export(setting.work / "export", merge=True)
    theirs = AutoModelForCausalLM.from_pretrained(setting.work / "export").to(setting.device).eval()
    ids = torch.arange(5, 29, device=setting.device).view(2, -1)
    with torch.no_grad(), backbone.use_role("policy"):
        ours = backbone.logits(backbone.decoder(input_ids=ids).last_hidden_state)
        gap = (ours - theirs(input_ids=ids).logits.float()).abs().max()
    result.check("largest difference of logits", float(gap), EXPORT)


def resume(setting: Setting, result: Result) -> None:
    """With `trainer.deterministic`, a run that was cut in two ends with the bits of one that wasn't."""
    whole = _checkpointed(setting, "whole", epochs=2)
    _checkpointed(setting, "cut", epochs=1)
    resumed = _checkpointed(setting, "cut", epochs=2, resume="last")
    again = dict(resumed.named_parameters())
    unequal = [
        name
        for name, weight in whole.named_parameters()
        if weight.requires_grad and not torch.equal(weight, again[name])
    ]
    result.check("tensors that differ", float(len(unequal)), 0.0)


def _branched_kernels(setting: Setting, result: Result) -> None:
    """Prompts computed once, in the kernels for bfloat16, beside rows of their own in float32."""
    for width in (8, 64, 128):
        with result.attempt(f"flash kernels for branches, heads of {width}"):
            gap = largest_gap(setting.device, torch.bfloat16, width)
            result.check(f"flash kernels for branches, heads of {width}", gap, HALF)
    serves = flash_serves(setting.device, torch.bfloat16, 8)
    result.note("branched attention in bfloat16", "flash" if serves else "masks: see the log")
    theirs = _passes(setting, setting.device, "expanded")
    ours = _passes(setting, setting.device, "shared", "bfloat16")
    for name, value in theirs.items():
        limit = 3 * HALF if name == "gradient" else HALF
        result.check(f"{name}, shared in bfloat16", _distance(ours[name], value), limit)


def _fused_logprobs(setting: Setting, result: Result) -> None:
    """Log-probs, entropies and gradients from products: compiled, beside single operators."""
    tokens = torch.arange(1024, device=setting.device)
    for dtype, limit in ((torch.float32, FORWARD), (torch.bfloat16, HALF)):
        random = torch.Generator(setting.device).manual_seed(0)
        hidden, weight = (
            torch.randn(size, 64, device=setting.device, generator=random).to(dtype)
            for size in (1024, 32000)
        )
        found = []
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for fuse in (False, True):
                hidden.requires_grad_()
                out = chunked_logprobs(hidden, weight, tokens, with_entropy=True, fuse=fuse)
                (slopes,) = torch.autograd.grad(out.logprobs.sum(), hidden)
                found.append((out.logprobs.detach(), out.entropy, slopes))
        failed = [str(warning.message) for warning in said if "compiled" in str(warning.message)]
        result.check(f"fused log-probs not compiled, {dtype}", float(len(failed)), 0.0)
        for name, plain, fused in zip(("log-probs", "entropy", "gradient"), *found, strict=True):
            # Plain takes a difference.
            least = GRADIENT if name == "entropy" else limit
            result.check(f"fused {name}, {dtype}", _distance(fused, plain), max(limit, least))


def _devices(setting: Setting) -> tuple[torch.device, torch.device]:
    return torch.device("cpu"), setting.device


def _distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a share of the norm."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def _backbone(
    setting: Setting, device: torch.device, branching: Any, dtype: Any = "float32"
) -> Backbone:
    spec = ModelSpec(name=setting.tiny, lora=LoraSpec(rank=8), branching=branching, dtype=dtype)
    backbone = Backbone.load(spec)
    backbone.add_adapter("policy")
    backbone.add_head("value", drawn=True)
    for path, weight in sorted(backbone.adapter_weights("policy").items()):
        # B starts at 0, which would leave A without a gradient.
        weight.data.normal_(std=0.1, generator=generator("adapter", path))
    return backbone.to(device)


def _batch(setting: Setting, device: torch.device) -> Any:
    data = setting.data("pairs", 8, tiny_preferences(8))
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    return {name: batch[name].to(device) for name in ("input_ids", "branch_ids", "position_ids")}


def _passes(
    setting: Setting, device: torch.device, branching: str, dtype: str = "float32"
) -> dict[str, Tensor]:
    backbone = _backbone(setting, device, branching, dtype)
    batch = _batch(setting, device)
    out = backbone(batch, num_branches=2, logprobs=True, entropy=True, values="value")
    (out.logprobs.sum() + out.values.sum()).backward()
    gradient = [weight.grad.flatten() for weight in backbone.adapter_weights("policy").values()]
    found = {"log-probs": out.logprobs, "entropy": out.entropy, "values": out.values}
    return {
        name: x.detach().cpu() for name, x in (found | {"gradient": torch.cat(gradient)}).items()
    }


def _samples(setting: Setting, device: torch.device) -> Tensor:
    backbone = _backbone(setting, device, "auto")
    backbone.eos_token_ids = ()  # all of one length
    ids = (torch.arange(48, device=device).view(4, -1) * 7 + 1) % 256
    prompts, seeds = Prompts(ids, torch.ones_like(ids).bool()), torch.arange(16, device=device)
    request = RolloutRequest(prompts, Sampling(max_new_tokens=24), seeds, 4)
    generation = NativeEngine(max_batch_size=12).generate(backbone, request)
    return generation.tokens.cpu()


def _curve(setting: Setting, name: str, metric: str, device: torch.device) -> Tensor:
    module = make(name, ModelSpec(name=setting.tiny, lora=LoraSpec(rank=8)), **SHORT)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    return torch.tensor(_fit_tiny(setting, module, name, accelerator=accelerator).of(metric))


def _fit_mixed(
    setting: Setting, result: Result, name: str, precision: str, lora: LoraSpec | None, title: str
) -> None:
    module = make(name, ModelSpec(name=setting.tiny, lora=lora), **SHORT)
    found = _fit_tiny(setting, module, name, precision=precision)
    result.check(f"{title}: gradient norms that are 0", found.of("train/grad_norm").count(0.0), 0.0)
    skipped = found.of("train/skipped_steps")[-1]
    # float16 starts with a loss scale that overflows at first.
    result.check(f"{title}: skipped steps", skipped, 0.0 if "bf16" in precision else 2.0)


def _fit_tiny(setting: Setting, module: LightningModule, name: str, **options: Any) -> History:
    makers = {"sft": tiny_demonstrations, "pairs": tiny_preferences, "prompts": tiny_prompts}
    rows: Rows = makers[KINDS[name]](24)
    history = History()
    setting.trainer([history], **options).fit(module, setting.data(KINDS[name], 8, rows))
    return history


def _ppo(setting: Setting) -> dict[str, Any]:
    return {
        "backbone": ModelSpec(name=setting.tiny, lora=LoraSpec(rank=8)),
        "reward": make("PPO", ModelSpec(name=setting.tiny), tokens=8).reward,
        "num_samples": 2,
        "updates": Updates(epochs=2),
        "sampling": Sampling(max_new_tokens=8),
        "optimizer": ADAM,
    }


def _checkpointed(
    setting: Setting, name: str, *, epochs: int, resume: str | None = None
) -> LightningModule:
    module = PPOPolicyModule(**_ppo(setting))
    directory: Path = setting.work / name
    with _deterministic():
        setting.trainer(
            [IterationCheckpoint(dirpath=str(directory), every_n_iterations=1)],
            max_epochs=epochs,
            enable_checkpointing=True,
            deterministic=True,
        ).fit(module, setting.data("prompts", 8, tiny_prompts(16)), ckpt_path=resume)
    return module


@contextmanager
def _deterministic() -> Iterator[None]:
    """Take back what the trainer switches on for the whole process."""
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
