"""RMSNorm with a backward of its own, for transformers' layers to be switched to.

Autograd keeps two float32 tensors of the input's size until then, and takes more passes over them. Here the input, or
on CPU the normalised one, is kept in its own dtype, and a number per token. No double backward, no transforms of
torch.func.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

if TYPE_CHECKING:
    _Layer = nn.Module
else:
    _Layer = object


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    r"""$w \cdot \mathrm{round}(x / \sqrt{\overline{x^2} + \epsilon})$, in float32 up to the rounding to the dtype of x.

    Args:
        x: (..., h).
        weight: w, (h,).
        eps: $\epsilon$.
    """
    if x.is_cuda:  # torch's one kernel in either pass keeps and rounds the same
        return weight * F.rms_norm(x, x.shape[-1:], eps=eps).to(x.dtype)
    if not torch.is_grad_enabled():
        # In a decode's many small steps autograd's wrapper costs as much as the norm.
        return weight * _normalise(x, eps)[0]
    out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised x in its own dtype, and in float32 what each token was multiplied by."""
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide.mul_(scale) if wide is not x else wide * scale).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normalised, scale = _normalise(x, eps)
        ctx.save_for_backward(normalised, scale, weight)
        return weight * normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # With n = x s: dn/dx = s (1 - n n^T / h).
        normalised, scale, weight = ctx.saved_tensors
        dtype, grad_x, grad_weight = normalised.dtype, None, None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normalised).reshape(-1, len(weight)).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            wide, normalised = (grad * weight).float(), normalised.float()
            along = (wide * normalised).mean(-1, keepdim=True)
            grad_x = wide.addcmul_(normalised, along, value=-1).mul_(scale).to(dtype)
        return grad_x, grad_weight, None


class _LeanNorm(_Layer):
    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., h) to (..., h)."""
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class LeanLlamaRMSNorm(_LeanNorm, LlamaRMSNorm):
    """Of Llama."""


class LeanMistralRMSNorm(_LeanNorm, MistralRMSNorm):
    """Of Mistral."""


class LeanQwen2RMSNorm(_LeanNorm, Qwen2RMSNorm):
    """Of Qwen2."""


class LeanQwen3RMSNorm(_LeanNorm, Qwen3RMSNorm):
    """Of Qwen3."""


_NORMS: dict[type, type[_LeanNorm]] = {
    LlamaRMSNorm: LeanLlamaRMSNorm,
    MistralRMSNorm: LeanMistralRMSNorm,
    Qwen2RMSNorm: LeanQwen2RMSNorm,
    Qwen3RMSNorm: LeanQwen3RMSNorm,
}


def adopt_norm(module: nn.Module) -> None:
    """Give a norm of a known class the forward above; it stays an instance of that class."""
    ours = _NORMS.get(type(module))
    if ours is not None:
        module.__class__ = ours
