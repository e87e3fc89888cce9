"""How fast is decoding, beside `transformers.generate` and beside what reading the weights alone would take."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.result import Result
from benchmarks.gpu.setting import Setting
from lit_rlhf.models import Backbone
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.types import Prompts

SHARED = 4
"""Samples of a prompt, where they share it."""


def decoding(setting: Setting, result: Result) -> None:
    """Tokens per second and milliseconds per step of some numbers of rows, without an adapter and with one."""
    plain = Backbone.load(setting.spec(lora=None), trainable=False).to(setting.device).eval()
    adapted = Backbone.load(setting.spec()).to(setting.device)
    adapted.add_adapter("policy")
    for backbone in (plain, adapted):
        backbone.eos_token_ids = ()  # all completions are as long
    weights = sum(p.numel() * p.element_size() for p in plain.parameters())
    result.note("weights", f"{weights / 2**30:.2f} GiB")
    for rows in setting.size.decode:
        ways = {
            "transformers.generate": partial(_theirs, setting, plain, rows),
            "NativeEngine": partial(_ours, setting, plain, rows, 1),
            "NativeEngine, LoRA": partial(_ours, setting, adapted, rows, 1),
            f"NativeEngine, LoRA, {SHARED} samples a prompt": partial(
                _ours, setting, adapted, rows, SHARED
            ),
        }
        for name, generate in ways.items():
            with result.attempt(f"{name}, {rows} rows"):
                _time(setting, result, f"{name}, {rows} rows", generate, rows)


def _time(
    setting: Setting, result: Result, name: str, generate: Callable[[int], None], rows: int
) -> None:
    """Two lengths, for their difference is that of steps alone: prefill and start-up fall out."""
    long = setting.size.response
    short = max(long // 4, 1)
    generate(short)
    setting.forget()
    seconds = []
    for tokens in (short, long):
        start = setting.now()
        generate(tokens)
        seconds.append(setting.now() - start)
    step = (seconds[1] - seconds[0]) / (long - short)
    result.measure(
        name, tokens_per_s=rows * long / seconds[1], ms_per_step=1e3 * step, **setting.memory()
    )


def _prompts(setting: Setting, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = setting.size.prompt
    ids = torch.arange(count * length, device=setting.device).view(count, length) % 200 + 20
    return ids, torch.ones_like(ids).bool()


def _ours(setting: Setting, backbone: Backbone, rows: int, samples: int, tokens: int) -> None:
    ids, mask = _prompts(setting, rows // samples)
    sampling, seeds = Sampling(max_new_tokens=tokens), torch.arange(rows, device=setting.device)
    request = RolloutRequest(Prompts(ids, mask), sampling, seeds, samples)
    NativeEngine().generate(backbone, request)


def _theirs(setting: Setting, backbone: Backbone, rows: int, tokens: int) -> None:
    ids, mask = _prompts(setting, rows)
    with torch.inference_mode():
        backbone.model.generate(
            ids,
            attention_mask=mask.long(),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            pad_token_id=backbone.pad_token_id,
        )
