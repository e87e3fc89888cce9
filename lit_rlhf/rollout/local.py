"""What the engines share that run the policy's own layers: a decode proved once."""

import torch

from lit_rlhf.errors import ConfigurationError, LitRLHFError, is_out_of_memory
from lit_rlhf.models import Backbone
from lit_rlhf.models.checks import product_dtype
from lit_rlhf.models.loading import embeddings
from lit_rlhf.rollout.base import (
    RolloutEngine,
    RolloutRequest,
    Sampling,
    completion_logprobs,
    context_length,
)
from lit_rlhf.types import Prompts, asked

_PROMPTS, _STEPS, _SAMPLES = (13, 5), 8, 2
_TOLERANCE, _ROUNDED = 1e-3, 0.1
"""Nats: the largest in float32, the mean where anything is computed in fewer bits."""


class LocalEngine(RolloutEngine):
    """Base of the engines that run the policy's own layers; `sample` says how."""

    way_out = "Rollouts of this model can't be had."
    """What remains to be done about a model that is decoded wrongly."""

    def longest(self, backbone: Backbone) -> int | None:
        """Most tokens of a row that the engine decodes, where there is a limit besides the model's context."""
        return None

    @torch.no_grad()
    def check(self, backbone: Backbone, role: str = "policy") -> None:
        """Sample a few tokens of two prompts and compare their log-probs with those of one plain row at a time.

        Done once for a backbone and kind of engine. Catches attention that a decode doesn't apply, whatever its name.

        Raises:
            ConfigurationError: They differ, or the decode fails.
        """
        kind, device = type(self).__name__, backbone.device
        limits = (self.longest(backbone), context_length(backbone))
        room = min((limit for limit in limits if limit), default=64) - _STEPS
        if kind in backbone.decoded_by or room < 1 or device.type == "meta":
            return
        lengths = torch.tensor([min(length, room) for length in _PROMPTS], device=device)
        width = int(lengths.max())
        mask = torch.arange(width, device=device) < lengths[:, None]
        vocabulary = embeddings(backbone.model).shape[0]
        ids = (torch.arange(2 * width, device=device).view(2, -1) * 5 + 1) % vocabulary
        seeds = torch.arange(2 * _SAMPLES, device=device)
        name, sampling = type(backbone.decoder).__name__, Sampling(max_new_tokens=_STEPS)
        try:
            out = self.sample(
                backbone, RolloutRequest(Prompts(ids, mask), sampling, seeds, _SAMPLES, role)
            )
        except (LitRLHFError, FloatingPointError):
            raise
        except Exception as error:  # of a decoder that can't take the cache or the mask
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:300]
            raise ConfigurationError(
                f"{kind} can't decode {name} ({type(error).__name__}: {said}). {self.way_out}"
            ) from error
        gaps = []
        for row in range(len(seeds)):
            prompt, taken = row // _SAMPLES, out.mask[row]
            tokens = out.tokens[row][taken]
            found = completion_logprobs(backbone, ids[prompt][mask[prompt]], tokens, role)
            gaps.append((found - asked(out.logprobs)[row][taken]).abs())
        exact = backbone.spec.quantization == "none"
        exact = exact and not torch.is_autocast_enabled(device.type)
        dtypes = {product_dtype(p.dtype) for p in backbone.model.parameters()}
        exact = exact and dtypes <= {torch.float32}
        gap = float(torch.cat(gaps).max() if exact else torch.cat(gaps).mean())
        if gap > (_TOLERANCE if exact else _ROUNDED):
            raise ConfigurationError(
                f"{kind} decodes {name} otherwise than its forward pass computes it: log-probs of the same tokens "
                f"differ by {gap:.2g} nats. {self.way_out}"
            )
        backbone.decoded_by.add(kind)
