"""Statistics of made-up completions, as `PreferenceModule` hands them to losses."""

import inspect

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from tests.public import public_names

PAIR_METRICS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}


def stats(branches: int = 2, rows: int = 6, seed: int = 0, **extra: Tensor) -> o.PreferenceStats:
    """Statistics of completions of 1 to 5 tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (rows, branches), generator=torch.Generator().manual_seed(99))
    mask = torch.arange(5) < lengths[..., None]
    tokens = -torch.rand(rows, branches, 5, generator=draw, dtype=torch.float64) * mask
    return o.PreferenceStats(tokens.sum(-1), lengths, tokens, mask, **extra)


def concrete(base: type) -> set[str]:
    """Names of the exported classes that can be made."""
    found = {name: getattr(o, name) for name in public_names("lit_rlhf.objectives")}
    return {
        n
        for n, c in found.items()
        if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)
    }
