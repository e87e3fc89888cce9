"""What the card can do by itself: the two ceilings that everything else is held to."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.result import Result
from benchmarks.gpu.setting import Setting

PACKAGES = ("torch", "triton", "transformers", "lightning", "peft", "bitsandbytes", "flash-attn")


def machine(setting: Setting, result: Result) -> None:
    """Card and versions; a copy, and a product in bfloat16 of random matrices (of ones it would be faster)."""
    for name, said in _facts(setting).items():
        result.note(name, said)
    rows = 8192 if setting.on_gpu else 256
    random = torch.Generator(setting.device).manual_seed(0)
    left, right = (
        torch.empty(rows, rows, device=setting.device).normal_(generator=random).to(torch.bfloat16)
        for _ in range(2)
    )
    seconds = _best(setting, lambda: left @ right)
    result.measure("bf16 product", tflops=2 * rows**3 / seconds / 1e12)
    size = 2**31 if setting.on_gpu else 2**24
    source = torch.zeros(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds = _best(setting, lambda: target.copy_(source))
    result.measure("copy, read and written", gb_per_s=2 * size / seconds / 1e9)
    start = setting.now()
    result.note("base", f"{setting.base}, made in {setting.now() - start:.1f} s")


def _best(setting: Setting, work: Callable[[], Any]) -> float:
    times = []
    for _ in range(8):
        start = setting.now()
        work()
        times.append(setting.now() - start)
    return min(times)


def _facts(setting: Setting) -> dict[str, str]:
    facts = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "none"
    if not setting.on_gpu:
        return facts | {"card": f"none: CPU, {os.cpu_count()} cores"}
    properties = torch.cuda.get_device_properties(setting.device)
    return facts | {
        "card": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": str(torch.version.cuda),
    }
