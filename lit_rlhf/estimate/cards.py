"""What cards and links can do by their data sheets, and what this machine does when it is asked."""

import os
import time
from dataclasses import dataclass, replace

import torch

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models.flops import measure_peak_flops

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A device that a process runs on.

    Attributes:
        name: As it is shown.
        kind: "cuda" or "cpu".
        memory: Bytes that programs get.
        bandwidth: Bytes a second from its memory.
        peaks: FLOP/s of matrix products without sparsity, by dtype.
        link: Name of the link to its neighbours.
        reserved: Bytes taken before any array is made: the CUDA context, or the interpreter with its libraries.
        slack: Share of the arrays' bytes that the allocator loses in between.
        launch: Seconds that the host needs for a kernel: what small passes are bound by.
        replay: Seconds that a kernel of a CUDA graph takes at least: what a recorded decode of few rows is bound by.
    """

    name: str
    kind: str
    memory: float
    bandwidth: float
    peaks: dict[torch.dtype, float]
    link: str
    reserved: float
    slack: float
    launch: float
    replay: float = 0.0

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s in a dtype."""
        return self.peaks.get(dtype, self.peaks[torch.float32])


def _gpu(name: str, gib: float, terabytes: float, half: float, single: float, link: str) -> Card:
    """A GPU by its data sheet: GiB as the driver reports them, TB/s, TFLOP/s in bfloat16 and in float32.

    0.6 GiB for the context and 4 % lost by the allocator are assumptions. A launch took 38 to 52 microseconds and a
    replayed kernel about 5 where they were measured, on one virtual machine with an H200 (docs/GPU.md).
    """
    peaks = dict.fromkeys((torch.bfloat16, torch.float16), half * 1e12)
    peaks[torch.float32] = single * 1e12
    fixed = {"reserved": 0.6 * GIB, "slack": 0.04, "launch": 45e-6, "replay": 5e-6}
    return Card(name, "cuda", gib * GIB, terabytes * 1e12, peaks, link, **fixed)


CARDS = {
    "h200": _gpu("H200 141 GB", 139.8, 4.8, 989, 67, "nvlink4"),
    "h100": _gpu("H100 80 GB SXM", 79.6, 3.35, 989, 67, "nvlink4"),
    "a100-80": _gpu("A100 80 GB SXM", 79.2, 2.04, 312, 19.5, "nvlink3"),
    "a100-40": _gpu("A100 40 GB SXM", 39.4, 1.56, 312, 19.5, "nvlink3"),
    "l40s": _gpu("L40S 48 GB", 44.9, 0.864, 362, 91.6, "pcie4"),
    "rtx4090": _gpu("RTX 4090 24 GB", 23.9, 1.01, 165, 82.6, "pcie4"),
}
"""By the names that `--card` takes."""

LINKS = {
    "nvlink4": 450e9,
    "nvlink3": 300e9,
    "pcie5": 64e9,
    "pcie4": 32e9,
    "ib400": 50e9,
    "ib200": 25e9,
    "eth100": 12.5e9,
    "eth10": 1.25e9,
    "memory": 5e9,
}
"""Bytes a second in one direction, for each process. `memory`: processes of one CPU by gloo, about."""


def card_of(name: str, dtype: torch.dtype) -> Card:
    """The card of a name; "this" is the machine, its speed measured in a dtype.

    Raises:
        ConfigurationError: There is no such card.
    """
    if name == "this":
        return _this(dtype)
    if name not in CARDS:
        raise ConfigurationError(
            f"card={name!r} isn't known: choose one of {', '.join(CARDS)}, or this."
        )
    return CARDS[name]


def bandwidth_of(link: str) -> float:
    """Bytes a second of a link, by name or as a number of GB/s.

    Raises:
        ConfigurationError: There is no such link.
    """
    if link in LINKS:
        return LINKS[link]
    try:
        given = float(link)
    except ValueError:
        given = 0.0
    if not given > 0:
        raise ConfigurationError(
            f"link={link!r} isn't known: choose one of {', '.join(LINKS)}, or give GB/s in one direction."
        )
    return given * 1e9


def _this(dtype: torch.dtype) -> Card:
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    peaks = {dtype: measure_peak_flops(device, dtype)}
    peaks.setdefault(torch.float32, peaks[dtype])
    bandwidth = _copied_per_second(device)
    if gpu:
        found = torch.cuda.get_device_properties(device)
        like = replace(CARDS["h100"], name=found.name, memory=float(found.total_memory))
        return replace(like, bandwidth=bandwidth, peaks=peaks)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Card("this CPU", "cpu", memory, bandwidth, peaks, "memory", resident(), 0.0, 0.0)


def resident() -> float:
    """Bytes that this process holds, as far as the system tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file of ours
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


def _copied_per_second(device: torch.device) -> float:
    """Bytes read and written a second in a copy, the best of three."""
    source = torch.ones(2**26 if device.type == "cuda" else 2**23, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        target.copy_(source)
        target[0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.itemsize / best
