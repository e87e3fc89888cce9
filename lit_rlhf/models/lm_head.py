"""The LM head with what architectures do to logits: a scale, a soft cap, a bias."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.logprobs import TokenLogprobs, chunked_logprobs


class LMHead:
    r"""Logits $c \tanh(s\,(W h + b) / c)$ of hidden states, with scale s and soft cap c where the config has them.

    Args:
        model: A causal language model. Known: `final_logit_softcapping` (Gemma), `logit_scale` (Cohere),
            `logits_scaling` (Granite), a bias.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        module = model.get_output_embeddings()
        if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
            raise ConfigurationError(
                f"{type(model).__name__} has no linear LM head in float: it can't act as a policy."
            )
        config = model.config.get_text_config()
        self.module = module
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = _scale(config)

    def logits(self, hidden: Tensor, product: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(..., h) to (..., V) in float32; `product` stands in for the linear layer."""
        logits = (product or self.module)(hidden.to(self.module.weight.dtype)).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

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
            softcap=self.softcap,
            logit_scale=self.scale,
            with_entropy=entropy,
            entropy_grad=entropy_grad,
        )


def _scale(config: PretrainedConfig) -> float:
    multiplier, divisor = (
        getattr(config, "logit_scale", None),
        getattr(config, "logits_scaling", None),
    )
    return (1.0 if multiplier is None else float(multiplier)) / (
        1.0 if divisor is None else float(divisor)
    )
