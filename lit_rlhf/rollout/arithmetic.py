"""A check before the first rollout that decoding by steps gives what a forward pass gives."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.functional.branches import pack_branches
from lit_rlhf.models import Backbone, evaluating, gathered
from lit_rlhf.models.checks import product_dtype
from lit_rlhf.models.loading import embeddings
from lit_rlhf.rollout.base import RolloutEngine, Sampling, context_length
from lit_rlhf.types import BranchedBatch, Generation, asked

_PROMPTS, _STEPS, _SAMPLES = (13, 5), 8, 2
_TOLERANCE, _ROUNDED = 1e-3, 0.1
"""Nats: the largest in float32, the mean where anything is computed in fewer bits."""


@torch.no_grad()
def check_arithmetic(
    engine: RolloutEngine,
    sample: Callable[..., Generation],
    backbone: Backbone,
    role: str | None,
    longest: int | None = None,
) -> None:
    """Sample a few tokens of two prompts and compare their log-probs with those of one plain row at a time.

    Done once for a backbone and kind of engine. Catches attention that a decode doesn't apply, whatever its name.

    Args:
        engine: Whose decode.
        sample: Its `generate` without checks.
        backbone: The model.
        role: Whose distribution is sampled.
        longest: Most tokens of a row that the engine decodes.

    Raises:
        ConfigurationError: They differ, or the decode fails.
    """
    kind, device = type(engine).__name__, backbone.device
    limits = (longest, context_length(backbone))
    room = min((limit for limit in limits if limit), default=64) - _STEPS
    if kind in backbone.decoded_by or room < 1 or device.type == "meta":
        return
    lengths = torch.tensor([min(length, room) for length in _PROMPTS], device=device)
    width = int(lengths.max())
    mask = torch.arange(width, device=device) < lengths[:, None]
    vocabulary = embeddings(backbone.model).shape[0]
    ids = (torch.arange(2 * width, device=device).view(2, -1) * 5 + 1) % vocabulary
    seeds = torch.arange(2 * _SAMPLES, device=device)
    sampling, name = Sampling(max_new_tokens=_STEPS), type(backbone.decoder).__name__
    way_out = "Use HFEngine." if kind == "NativeEngine" else "Rollouts of this model can't be had."
    try:
        out = sample(
            backbone, ids, mask, sampling=sampling, seeds=seeds, num_samples=_SAMPLES, role=role
        )
    except (LitRLHFError, FloatingPointError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a decoder that can't take the cache or the mask
        said = " ".join(str(error).split())[:300]
        raise ConfigurationError(
            f"{kind} can't decode {name} ({type(error).__name__}: {said}). {way_out}"
        ) from error
    prompts = [ids[i // _SAMPLES][mask[i // _SAMPLES]] for i in range(len(seeds))]
    gaps = torch.cat([_gap(backbone, prompt, out, i, role) for i, prompt in enumerate(prompts)])
    exact = backbone.spec.quantization == "none" and not torch.is_autocast_enabled(device.type)
    exact = exact and all(
        product_dtype(p.dtype) == torch.float32 for p in backbone.model.parameters()
    )
    gap = float(gaps.max() if exact else gaps.mean())
    if gap > (_TOLERANCE if exact else _ROUNDED):
        raise ConfigurationError(
            f"{kind} decodes {name} otherwise than its forward pass computes it: log-probs of the same tokens differ "
            f"by {gap:.2g} nats. {way_out}"
        )
    backbone.decoded_by.add(kind)


def _gap(backbone: Backbone, prompt: Tensor, out: Generation, row: int, role: str | None) -> Tensor:
    """(T,) between the log-probs of a completion and those of a forward of that row alone."""
    tokens = out.tokens[row][out.mask[row]][None]
    ones = torch.ones_like(tokens).bool()
    packed = pack_branches(prompt[None], torch.ones_like(prompt[None]).bool(), tokens, ones)
    batch = BranchedBatch(
        input_ids=packed.input_ids, branch_ids=packed.branch_ids, position_ids=packed.position_ids
    )
    with gathered(backbone), evaluating(backbone):
        found = asked(backbone(batch, num_branches=1, role=role, logprobs=True).logprobs)
    gap: Tensor = (found[0] - asked(out.logprobs)[row][out.mask[row]]).abs()
    return gap
