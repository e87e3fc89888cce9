"""Reading generations and building what they are generated from, for tests."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.models.specs import Attention
from lit_rlhf.rollout import RolloutRequest, Sampling
from lit_rlhf.types import Generation, Prompts

LENGTHS = (7, 3, 1, 5, 7, 2)


def make_prompts() -> tuple[Tensor, Tensor]:
    """Six prompts of different lengths, right-padded with an id that is a token too."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(6, 260, mask.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(mask, ids, 9), mask


def make_seeds(count: int) -> Tensor:
    return torch.arange(count) * 7919 + 11


def make_request(sampling: Sampling, num_samples: int = 1, **options: Any) -> RolloutRequest:
    """Completions of those six prompts."""
    prompts, seeds = Prompts(*make_prompts()), make_seeds(len(LENGTHS) * num_samples)
    given = {"prompts": prompts, "seeds": seeds, "num_samples": num_samples} | options
    return RolloutRequest(sampling=sampling, **given)


def make_backbone(tokenizer: Path, attention: Attention = "sdpa", **config: Any) -> Backbone:
    """A random model of some architecture."""
    return Backbone.load(
        ModelSpec(
            config={"initializer_range": 0.2, **config},
            tokenizer=str(tokenizer),
            attention=attention,
        )
    )


def sequences(generation: Generation) -> list[tuple[list[int], bool]]:
    """The tokens that count and whether the row finished, for each row."""
    pairs = zip(generation.tokens, generation.mask, generation.finished.tolist(), strict=True)
    return [(tokens[mask].tolist(), finished) for tokens, mask, finished in pairs]
