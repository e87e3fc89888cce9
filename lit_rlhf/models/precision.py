"""Where weights lie and which dtype they are loaded in, where that is left open, and what is said of it."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.models.specs import DTypeName, DTypeOption

_log = logging.getLogger(__name__)
_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""How /proc/cpuinfo names instructions that multiply bfloat16: the last one on ARM."""
_LIMITS = {
    "ATEN_CPU_CAPABILITY": {"default", "avx2"},
    "ONEDNN_MAX_CPU_ISA": {"sse41", "avx", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni"},
}
"""Values of the environment by which libraries leave those instructions alone."""
_said: set[str] = set()


def default_device() -> torch.device:
    """The first GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(option: DTypeOption) -> DTypeName:
    """Take `auto` to bfloat16 where the device multiplies it and to float32 elsewhere; say which and why.

    Of a dtype that is asked for by name nothing is changed, but emulation is warned of.
    """
    gpu = torch.cuda.is_available()
    fast = cpu_multiplies_bfloat16()
    if gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    device = f"the GPU ({torch.cuda.get_device_name()})" if gpu else "this CPU"
    if option == "auto":
        taken: DTypeName = "bfloat16" if fast else "float32"
        lacks = "has no instructions for bfloat16, which would be emulated"
        why = "multiplies bfloat16" if fast else lacks
        _say(rank_zero_info, f"dtype: auto takes {taken}: {device} {why}.")
        return taken
    if option == "bfloat16" and not fast:
        _say(
            _log.warning,
            f"dtype: bfloat16 is emulated here, for {device} has no instructions for it: steps may take a hundred "
            "times as long as in float32. Set dtype: float32, or auto.",
        )
    return option


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it and the environment's limits let libraries use them."""
    if any(os.environ.get(name, "").lower() in limits for name, limits in _LIMITS.items()):
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return False
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    return not set(_FLAGS).isdisjoint(next(lines, "").split())


def _say(log: Callable[[str], None], text: str) -> None:
    if text not in _said:  # a run loads several models
        _said.add(text)
        log(text)
