r"""How many FLOPs a pass takes by arithmetic, and how many a device can do: what utilisation is measured by.

Of a pass over t tokens whose attention has p pairs (a query and a key it may see), of which q positions go through the
LM head:

- forward: $2 (N + N_a)\,t + 4\,l\,d\,p + 2\,V h\,q$, with N weights in the linear layers of the trunk, $N_a$ in the
  role's adapter, l layers whose heads have width d together, V tokens and hidden size h;
- gradients of activations: the same again, and $4\,l\,d\,p$ more, for attention's backward has four products where its
  forward has two;
- gradients of weights: $2 N_t\,t$ for the $N_t$ weights that are trained, so next to nothing on a frozen base; and
  $2\,V h\,q$ where the head is trained.

Without attention and head a trained token costs 6 FLOPs per weight in full fine-tuning and about 4 with LoRA. These are
the model's FLOPs (arXiv:2204.02311, appendix B): padding, keys that a kernel computes and masks, recomputed activations
and logits, norms, embeddings and scalar heads don't count. Of experts in one array those count that a token passes.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.branched import used_weights
from lit_rlhf.types import BranchedBatch, BranchOutput


def pass_flops(
    backbone: Backbone, batch: BranchedBatch, role: str | None, *, logprobs: bool, backward: bool
) -> Tensor:
    """FLOPs of a pass over a branched batch, a prompt counted once for all its branches.

    Args:
        backbone: Whose pass.
        batch: What it was given.
        role: Whose adapter was on.
        logprobs: Whether the branches' positions went through the LM head.
        backward: Whether gradients are computed too.

    Returns:
        A float64 scalar on the batch's device, which needn't be waited for.
    """
    branch_ids = batch["branch_ids"]
    tokens = (branch_ids >= 0).sum()
    pairs = ((batch["position_ids"] + 1) * (branch_ids >= 0)).sum()
    predicted = (branch_ids > 0).sum() * int(logprobs)
    total = _forward(backbone, role, tokens, pairs, predicted)
    if backward:
        pair = backbone.costs.per_pair
        config = backbone.model.config.get_text_config()
        own = _trained_matrices(backbone, role)
        trained = 2.0 * sum(used_weights(weight, config) for weight in own)
        total = 2 * total + pair * pairs + trained * tokens
        if backbone.has_lm_head and backbone.model.get_output_embeddings().weight.requires_grad:
            total = total + 2.0 * _head_weights(backbone) * predicted
    return total


def call_flops(
    backbone: Backbone, args: tuple[Any, ...], kwargs: dict[str, Any], output: BranchOutput
) -> Tensor:
    """FLOPs of a call of a backbone, as a forward hook sees it: with a backward where the output has a gradient."""
    made = output.logprobs, output.values, output.scores
    return pass_flops(
        backbone,
        args[0] if args else kwargs["batch"],
        kwargs.get("role", "policy"),
        logprobs=output.logprobs is not None or output.entropy is not None,
        backward=any(value is not None and value.requires_grad for value in made),
    )


def generation_flops(
    backbone: Backbone, role: str | None, prompt_mask: Tensor, mask: Tensor
) -> Tensor:
    """FLOPs of sampling completions with a cache, each prompt computed once for all its samples.

    The first token comes from the prompt's last state and the last one is never read, so L tokens take L - 1 steps.

    Args:
        backbone: The policy.
        role: Whose adapter was on.
        prompt_mask: (B, P).
        mask: (N, T) of the completions, those of a prompt next to each other.

    Returns:
        A float64 scalar.
    """
    prompts, lengths = prompt_mask.sum(-1).double(), mask.sum(-1).double()
    steps = (lengths - 1).clamp_min(0)
    starts = prompts.repeat_interleave(len(lengths) // max(len(prompts), 1))
    tokens = prompts.sum() + steps.sum()
    pairs = (prompts * (prompts + 1) / 2).sum() + (steps * starts + steps * (steps + 1) / 2).sum()
    return _forward(backbone, role, tokens, pairs, lengths.sum())


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype = torch.float32, size: int | None = None
) -> float:
    """FLOP/s of a product of two square matrices, the best of five.

    Args:
        device: Where to measure.
        dtype: Of the matrices: that of the weights that the work is done with.
        size: Rows of the matrices; default 8192 on accelerators, 1024 on CPU.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    # Random, for a GPU multiplies ones faster: they take less power, so that its clock stays up.
    random = torch.Generator(device).manual_seed(0)
    matrix = torch.empty(size, size, device=device).normal_(generator=random).to(dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for the product
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _forward(
    backbone: Backbone, role: str | None, tokens: Tensor, pairs: Tensor, predicted: Tensor
) -> Tensor:
    adapter = 0
    if role is not None and role in backbone.adapters:
        adapter = sum(weight.numel() for weight in backbone.adapter_weights(role).values())
    per_token, per_pair = backbone.costs.per_token + 2.0 * adapter, backbone.costs.per_pair
    head = 2.0 * _head_weights(backbone) if backbone.has_lm_head else 0.0
    return per_token * tokens.double() + per_pair * pairs.double() + head * predicted.double()


def _trained_matrices(backbone: Backbone, role: str | None) -> list[nn.Parameter]:
    if role is not None and role in backbone.adapters:
        matrices = backbone.adapter_weights(role).values()
        return [weight for weight in matrices if weight.requires_grad]
    layers = [part for part in backbone.decoder.modules() if not isinstance(part, nn.Embedding)]
    weights = (weight for module in layers for weight in module.parameters(recurse=False))
    return [weight for weight in weights if weight.requires_grad and weight.dim() >= 2]


def _head_weights(backbone: Backbone) -> int:
    return int(backbone.model.get_output_embeddings().weight.numel())
