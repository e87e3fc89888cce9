"""A decode step in fewer and larger products, with the weights rearranged for the time of a rollout.

At each step every weight is read for a few rows. On CPU such products gain from weights that lie as oneDNN's kernels
read them (which a training step's many rows don't: rearranging them costs it little), and from layers of one input
being one product. The low-rank product of an adapter is another such layer. Everything between the products is called
once for all rows, without the dispatch of a decoder's own forward.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

from lit_rlhf.models import Backbone
from lit_rlhf.models.lora import LinearParts, is_altered, is_float_linear, linear_parts
from lit_rlhf.rollout.kv_cache import DecodeCache

_KNOWN = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Decoders of the one shape that `_PackedLayer` computes; a subclass may compute another."""
_ROWS = 64
"""Rows that weights are laid out for; the layout serves any number."""


def packable(backbone: Backbone) -> bool:
    """Whether a decoder can be packed: of a known shape, on CPU, its linear layers in float, nothing hooked or patched in between.

    (transformers hooks a decoder for good when it is asked for `output_hidden_states`.)
    """
    decoder: Any = backbone.decoder
    if (
        type(decoder) not in _KNOWN
        or backbone.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    if any(map(is_altered, backbone.model.modules())):
        return False
    products = [layer for block in decoder.layers for layer in _projections(block)]
    return all(map(is_float_linear, (*products, backbone.model.get_output_embeddings())))


class PackedStep:
    """One more token of each row, by a copy of a backbone's weights: those of the role that is active when it is made.

    Args:
        backbone: One that is `packable`. After a change of its weights, make another: this one may or may not see it.
    """

    def __init__(self, backbone: Backbone) -> None:
        decoder: Any = backbone.decoder
        self.backbone = backbone
        self.embed, self.norm, self.rotary = decoder.embed_tokens, decoder.norm, decoder.rotary_emb
        self.layers = [
            _PackedLayer(layer) for layer in decoder.layers[: decoder.config.num_hidden_layers]
        ]
        self.head = _PackedLinear([backbone.model.get_output_embeddings()])

    def __call__(self, tokens: Tensor, cache: DecodeCache) -> tuple[Tensor, Tensor]:
        """See `DecodeStep`."""
        states = self.embed(tokens)
        cos, sin = self.rotary(states[:, None], cache.positions[:, None])
        half = sin.shape[-1] // 2
        turn = cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for index, layer in enumerate(self.layers):
            states = layer(states, turn, cache, index)
        states = self.norm(states)
        return states, self.backbone.logits(states, product=self.head)


class _PackedLayer:
    """A pre-norm layer of grouped attention with rotary positions and a gated MLP."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.head_norms = (
            (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        )
        query, key, value, out, gate, up, down = _projections(layer)
        self.query_key_value, self.out = _PackedLinear([query, key, value]), _PackedLinear([out])
        self.gate_up, self.down = _PackedLinear([gate, up]), _PackedLinear([down])
        self.act = mlp.act_fn
        self.scale, self.dim = attention.scaling, attention.head_dim
        self.heads = [width // self.dim for width in self.query_key_value.widths]

    def __call__(
        self, states: Tensor, turn: tuple[Tensor, Tensor], cache: DecodeCache, index: int
    ) -> Tensor:
        heads = self.query_key_value(self.attention_norm(states)).unflatten(-1, (-1, self.dim))
        queries, keys, values = self.heads
        turning = heads[:, : queries + keys]
        if self.head_norms is not None:
            norm_query, norm_key = self.head_norms
            turning = torch.cat(
                [norm_query(turning[:, :queries]), norm_key(turning[:, queries:])], dim=1
            )
        turning = _rotated(turning, *turn)
        cache.own_layers[index].update(turning[:, queries:, None], heads[:, -values:, None])
        mixed = cache.attend(index, turning[:, :queries, None], self.scale, None)
        states = states + self.out(mixed.flatten(1))
        gate, up = self.gate_up(self.mlp_norm(states)).split(self.gate_up.widths, dim=-1)
        return states + self.down(self.act(gate) * up)


class _PackedLinear:
    """Linear layers of the same input side by side, as one product; behind them the first halves of their adapters."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        parts = [linear_parts(layer) for layer in layers]
        self.widths = [len(part.weight) for part in parts]
        self.width = sum(self.widths)
        downs = [part.down.to(part.weight.dtype) for part in parts if part.down is not None]
        self.up = _diagonal(parts) if downs else None
        rows = [(part.weight, part.bias) for part in parts] + [(down, None) for down in downs]
        bias = None
        if any(part.bias is not None for part in parts):
            bias = torch.cat(
                [
                    weight.new_zeros(len(weight)) if given is None else given
                    for weight, given in rows
                ]
            )
        self.product = _product(
            torch.cat([weight for weight, _ in rows]) if len(rows) > 1 else rows[0][0], bias
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, out of all layers)."""
        out = self.product(x)
        if self.up is None:
            return out
        return out[:, : self.width].addmm_(out[:, self.width :], self.up)


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    ops: Any = torch.ops.mkldnn
    # Private operators, those that torch's compiler uses: a torch without them gets plain products.
    lay_out, multiply = (
        getattr(ops, "_reorder_linear_weight", None),
        getattr(ops, "_linear_pointwise", None),
    )
    if (
        weight.dtype != torch.bfloat16
        or lay_out is None
        or multiply is None
        or not ops._is_mkldnn_bf16_supported()  # noqa: SLF001
    ):
        return partial(F.linear, weight=weight, bias=bias)
    laid_out = lay_out(weight, _ROWS)
    return lambda x: multiply(x, laid_out, bias, "none", [], "")


def _diagonal(parts: Sequence[LinearParts]) -> Tensor:
    """(ranks of all adapters, widths of all layers): the second halves, each where its layer's output is."""
    ranks = sum(len(part.down) for part in parts if part.down is not None)
    first = parts[0].weight
    up = first.new_zeros(ranks, sum(len(part.weight) for part in parts))
    row = column = 0
    for part in parts:
        if part.up is not None:
            rank = part.up.shape[1]
            up[row : row + rank, column : column + len(part.weight)] = part.up.t()
            row += rank
        column += len(part.weight)
    return up


def _projections(layer: Any) -> tuple[nn.Module, ...]:
    """The linear layers of a decoder layer, those that share an input beside each other."""
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return *of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _rotated(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary positions of (rows, heads, dim), bit for bit as transformers computes them."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * signed_sin
