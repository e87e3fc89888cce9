"""Stateless randomness (layer L0).

Nothing in the library draws from a global generator: every draw is a pure function of (seed, purpose, indices), so a
run can be killed and resumed, split over ranks or batched otherwise and still draw the same numbers.
"""

import hashlib

import torch
from torch import Tensor

_MASK_63 = (1 << 63) - 1


def stable_hash(*parts: str | int) -> int:
    """Hash strings and integers to 63 bits, the same on every machine, process and Python version.

    Example:
        >>> stable_hash(0, "rollout", 3) == stable_hash(0, "rollout", 3)
        True
    """
    text = "\x1f".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK_63


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded with `stable_hash` of the parts."""
    return torch.Generator().manual_seed(stable_hash(*parts))


def sample_seeds(seed: int, iteration: int, purpose: str, indices: Tensor) -> Tensor:
    """One 63-bit seed per sample.

    Args:
        seed: The seed of the run.
        iteration: The iteration the samples belong to.
        purpose: What the randomness is for ("rollout", "validation", ...).
        indices: (n,) integers that name the samples globally (not per rank, not per batch).

    Returns:
        (n,) int64 on the device of `indices`.
    """
    seeds = [stable_hash(seed, iteration, purpose, int(i)) for i in indices.tolist()]
    return torch.tensor(seeds, dtype=torch.int64, device=indices.device)


def uniforms(seeds: Tensor, step: int) -> Tensor:
    """One uniform number in [0, 1) per seed for a step: a counter-based generator (SplitMix64's finaliser).

    The result depends on the seed and the step alone, never on how samples are batched, and is the same on each device.

    Args:
        seeds: (n,) int64.
        step: The index of the draw.

    Returns:
        (n,) float64 with 53 random bits.
    """
    # SplitMix64 (Steele, Lea and Flood 2014); int64 products wrap as the algorithm wants, shifts must be logical.
    z = seeds + _signed(0x9E3779B97F4A7C15 * (step + 1) % (1 << 64))
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).to(torch.float64) * 2.0**-53


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)
