"""What the comparison ran on."""

import os
import platform
from pathlib import Path
from typing import Any

from lit_rlhf.internals.torch import multiplies_bfloat16

_BFLOAT16 = ("avx512_bf16", "amx_bf16")  # the later multiplies faster
CPUINFO = Path("/proc/cpuinfo")


def machine(threads: int, peaks: dict[str, float], dtype: str) -> dict[str, Any]:
    """CPU, cores, memory, and what a matrix product reached.

    Args:
        threads: Used by each process.
        peaks: FLOP/s by dtype.
        dtype: Of the weights in the timed runs.
    """
    return {
        "cpu": cpu_model(CPUINFO.read_text(encoding="utf-8")),
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": dtype,
        "memory_gigabytes": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1
        ),
        "python": platform.python_version(),
        "matmul_gflops": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
    }


def cpu_model(cpuinfo: str) -> str:
    """Name, family and model of the first processor: virtual machines often hide the name alone."""
    found = _first_processor(cpuinfo)
    name = found.get("model name", platform.machine())
    numbers = [
        f"{part} {found[key]}"
        for part, key in (("family", "cpu family"), ("model", "model"))
        if key in found
    ]
    features = [flag for flag in _BFLOAT16 if flag in found.get("flags", "").split()]
    return ", ".join([name, *numbers, *features])


def cpu_kind(cpuinfo: str, dtype: str) -> str:
    """Where ratios are alike: by the best instructions for bfloat16 where weights are in it, else by the dtype."""
    flags = _first_processor(cpuinfo).get("flags", "").split()
    found = [flag for flag in _BFLOAT16 if flag in flags]
    return found[-1] if found and dtype == "bfloat16" else dtype


def _first_processor(cpuinfo: str) -> dict[str, str]:
    values = dict(
        line.split(":", 1)
        for line in cpuinfo.split("\n\n", maxsplit=1)[0].splitlines()
        if ":" in line
    )
    return {name.strip(): value.strip() for name, value in values.items()}


def fast_dtype() -> str:
    """What this CPU multiplies: bfloat16 where it has instructions for it; emulated, it takes many times as long."""
    return "bfloat16" if multiplies_bfloat16() else "float32"
