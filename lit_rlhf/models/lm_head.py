"""Heads: the LM head with what architectures do to logits (a scale, a soft cap, a bias), and scalar heads."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.chunks import Rows, rows_by_chunks
from lit_rlhf.functional.logprobs import TokenLogprobs, chunked_logprobs, token_logprobs
from lit_rlhf.functional.numerics import LogitShape, log_collision
from lit_rlhf.seeding import generator

_COMPARED_CPU, _COMPARED_ACCELERATOR = 1 << 22, 1 << 25
"""Logits of one chunk where distributions are compared, which takes about ten arrays of their size."""


class Comparison(NamedTuple):
    """Another model's next-token distributions at the tokens of a batch, and how to compare with them."""

    hidden: Tensor
    """(n, h): its states before each token that exists, row by row."""
    logits: Callable[[Tensor], Tensor]
    """Its LM head: (m, h) to (m, V)."""
    divergence: Callable[[Tensor, Tensor], Tensor]
    """From our logits and its, (m, V) each, to (m,)."""


class LMHead:
    r"""Logits $c \tanh(s\,(W h + b) / c)$ of hidden states, with scale s and soft cap c where the config has them.

    Args:
        model: A causal language model. Known: `final_logit_softcapping` (Gemma), `logit_scale` (Cohere),
            `logits_scaling` (Granite), a bias.
        plain: Compute log-probs by single operators everywhere.
    """

    def __init__(self, model: PreTrainedModel, plain: bool = False) -> None:
        module = model.get_output_embeddings()
        if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
            raise ConfigurationError(
                f"{type(model).__name__} has no linear LM head in float: it can't act as a policy."
            )
        config = model.config.get_text_config()
        self.module = module
        self.plain = plain
        softcap: float | None = getattr(config, "final_logit_softcapping", None)
        times, over = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        scale = (1.0 if times is None else float(times)) / (1.0 if over is None else float(over))
        self.shape = LogitShape(softcap=softcap, scale=scale)

    def logits(self, hidden: Tensor, product: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(..., h) to (..., V) in float32; `product` stands in for the linear layer."""
        return self.shape.logits((product or self.module)(hidden.to(self.module.weight.dtype)))

    def logprobs(
        self,
        hidden: Tensor,
        tokens: Tensor,
        *,
        temperature: float,
        entropy: bool,
        entropy_grad: bool,
    ) -> TokenLogprobs:
        """Log-probs (n,), and entropy, of tokens (n,) from states (n, h); logits exist for a chunk at a time only."""
        return chunked_logprobs(
            hidden,
            self.module.weight,
            tokens,
            bias=self.module.bias,
            temperature=temperature,
            softcap=self.shape.softcap,
            logit_scale=self.shape.scale,
            with_entropy=entropy,
            entropy_grad=entropy_grad,
            fuse=False if self.plain else None,
        )

    def compare(
        self, hidden: Tensor, tokens: Tensor, other: Comparison, temperature: float
    ) -> Rows:
        """How far another model's distributions are from ours, (n,), and log p/q of the tokens (n,), no gradient.

        Logits exist for a chunk at a time only, in either pass. Ids that only the other's head has are left out.
        """
        width = self.module.weight.shape[0]

        def compute(rows: Tensor, other_rows: Tensor, picks: Tensor) -> Rows:
            with torch.no_grad():
                theirs = other.logits(other_rows)[:, :width] / temperature
            ours = self.logits(rows) / temperature
            with torch.no_grad():
                ratio = token_logprobs(ours, picks) - token_logprobs(theirs, picks)
            return other.divergence(ours, theirs), ratio

        return rows_by_chunks(
            compute,
            hidden,
            other.hidden,
            tokens,
            chunk_size=self._rows_at_a_time(hidden),
            keep_slopes=not any(weight.requires_grad for weight in self.module.parameters()),
        )

    @torch.no_grad()
    def collision(self, hidden: Tensor, temperature: float) -> Tensor:
        r"""$\log\sum_v\pi(v)^2$ of the next token after states (n, h), (n,), without gradient."""
        chunks = hidden.split(self._rows_at_a_time(hidden))
        return torch.cat([log_collision(self.logits(rows) / temperature) for rows in chunks])

    def _rows_at_a_time(self, hidden: Tensor) -> int:
        logits = _COMPARED_CPU if hidden.device.type == "cpu" else _COMPARED_ACCELERATOR
        return max(logits // self.module.weight.shape[0], 16)


class ScalarHead(nn.Module):
    r"""A linear map from a hidden state to one number, $w^\top h$, in float32 whatever the decoder's dtype.

    It has no bias: preferences don't determine one, and `AutoModelForSequenceClassification` has none.

    Args:
        hidden_size: Width of the decoder.
        init_std: Standard deviation of the initial weights; 0 starts at the constant 0.
        seed: Of the initial weights.
        name: Heads of different names draw different weights from one seed.
        device: Where the weights live.
    """

    weight: nn.Parameter

    def __init__(
        self,
        hidden_size: int,
        init_std: float = 0.0,
        seed: int = 0,
        name: str = "",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        draw = torch.empty(hidden_size, dtype=torch.float32, device="cpu")
        draw.normal_(generator=generator(seed, "head", name))
        self.weight = nn.Parameter((draw * init_std).to(device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., h) in any float dtype to (...) in float32, under autocast too."""
        # The meta device, which checks shapes and devices, knows no autocast.
        kind = "cpu" if hidden.is_meta else hidden.device.type
        with torch.autocast(kind, enabled=False):
            return hidden.float() @ self.weight.float()

    @staticmethod
    def reward_std(hidden_size: int) -> float:
        r"""Initial $\sigma = 1/\sqrt{h + 1}$ of a reward head (arXiv:1909.08593): first scores are of order 1."""
        return float((hidden_size + 1) ** -0.5)
