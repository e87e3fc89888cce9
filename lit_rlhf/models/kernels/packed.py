"""A decode step in fewer and larger products, with the weights rearranged for the time of a rollout.

At each step every weight is read for a few rows. On CPU such products gain from weights that lie as oneDNN's kernels
read them (which a training step's many rows don't: rearranging them costs it little), and everywhere from layers of one
input being one product. The low-rank product of an adapter is another such layer. Weights that autocast would cast at
each step, or that would be dequantized, are so once. Everything between the products is called once for all rows,
without the dispatch of a decoder's own forward.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, MistralModel, PreTrainedModel, Qwen2Model, Qwen3Model

from lit_rlhf.functional.logprobs import product_dtype
from lit_rlhf.internals.torch import is_altered, laid_out_linear
from lit_rlhf.models.kernels.lora import LinearParts, has_linear_parts, linear_parts

_KNOWN = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Decoders of the one shape that `_PackedLayer` computes; a subclass may compute another."""
_ROWS = 64
"""Rows that weights are laid out for; the layout serves any number."""


def packable(model: PreTrainedModel, *, dequantize: bool = False) -> bool:
    """Whether a decoder can be packed: of a known shape, its layers in float, none hooked or patched, with room for it.

    (transformers hooks a decoder for good when it is asked for `output_hidden_states`.)

    Args:
        model: A causal language model.
        dequantize: Quantized layers will do too.
    """
    decoder: Any = model.base_model
    if type(decoder) not in _KNOWN or any(map(is_altered, model.modules())):
        return False
    projections = [module for layer in decoder.layers for module in _projections(layer)]
    layers = [*projections, model.get_output_embeddings()]
    if not all(has_linear_parts(layer, quantized=dequantize) for layer in layers):
        return False
    if model.device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    copied: int = sum(layer.in_features * layer.out_features for layer in layers)
    copied *= product_dtype(decoder.norm.weight).itemsize
    return 2 * copied <= free  # it must leave as much again as it takes


class PackedStep:
    """One more token of each row, by a copy of a model's weights: those of the role that is active when it is made.

    Args:
        model: One that is `packable`. After a change of its weights, make another: this one may or may not see it.
        logits: From states and the product with the LM head to logits, as `Backbone.logits`.
        gather: Makes a layer that is divided over processes whole for a time, in which it is copied; embeddings and
            head must be whole all the time. None where all layers are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        logits: Callable[..., Tensor],
        gather: Callable[[nn.Module], AbstractContextManager[None]] | None = None,
    ) -> None:
        decoder: Any = model.base_model
        self.logits = logits
        self.embed, self.norm, self.rotary = decoder.embed_tokens, decoder.norm, decoder.rotary_emb
        dtype = product_dtype(decoder.norm.weight)  # the layers may be quantized
        self.layers = []
        for layer in decoder.layers[: decoder.config.num_hidden_layers]:
            with nullcontext() if gather is None else gather(layer):
                self.layers.append(_PackedLayer(layer, dtype, lasts=gather is None))
        self.head = _PackedLinear([model.get_output_embeddings()], dtype)

    def __call__(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """See `DecodeStep`."""
        states = self.embed(tokens)
        cos, sin = self.rotary(states[:, None], cache.positions[:, None])
        half = sin.shape[-1] // 2
        turn = cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for index, layer in enumerate(self.layers):
            states = layer(states, turn, cache, index)
        states = self.norm(states)
        return states, self.logits(states, product=self.head)


class _PackedLayer:
    """A pre-norm layer of grouped attention with rotary positions and a gated MLP; a copy if that doesn't last."""

    def __init__(self, layer: Any, dtype: torch.dtype, *, lasts: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        norms = norms if lasts else copy.deepcopy(norms)
        self.attention_norm, self.mlp_norm, *self.head_norms = norms
        query, key, value, out, gate, up, down = _projections(layer)
        self.query_key_value, self.out, self.gate_up, self.down = (
            _PackedLinear(layers, dtype, lasts=lasts)
            for layers in ([query, key, value], [out], [gate, up], [down])
        )
        self.act = mlp.act_fn
        self.scale, self.dim = attention.scaling, attention.head_dim
        self.heads = [width // self.dim for width in self.query_key_value.widths]

    def __call__(
        self, states: Tensor, turn: tuple[Tensor, Tensor], cache: Any, index: int
    ) -> Tensor:
        heads = self.query_key_value(self.attention_norm(states)).unflatten(-1, (-1, self.dim))
        queries, keys, values = self.heads
        turning = heads[:, : queries + keys]
        if self.head_norms:
            norm_query, norm_key = self.head_norms
            of_query, of_key = norm_query(turning[:, :queries]), norm_key(turning[:, queries:])
            turning = torch.cat([of_query, of_key], dim=1)
        cos, signed_sin = turn  # rotary positions, bit for bit as transformers computes them
        turning = turning * cos + turning.roll(self.dim // 2, -1) * signed_sin
        cache.own_layers[index].update(turning[:, queries:, None], heads[:, -values:, None])
        mixed = cache.attend(index, turning[:, :queries, None], self.scale)
        states = states + self.out(mixed.flatten(1))
        gate, up = self.gate_up(self.mlp_norm(states)).split(self.gate_up.widths, dim=-1)
        return states + self.down(self.act(gate) * up)


class _PackedLinear:
    """Linear layers of the same input side by side, as one product; behind them the first halves of their adapters."""

    def __init__(
        self, layers: Sequence[nn.Module], dtype: torch.dtype, *, lasts: bool = True
    ) -> None:
        parts = [linear_parts(layer, dtype) for layer in layers]
        self.dtype = dtype
        self.widths = [len(part.weight) for part in parts]
        self.width = sum(self.widths)
        downs = [part.down for part in parts if part.down is not None]
        self.up = _diagonal(parts) if downs else None
        rows = [(part.weight, part.bias) for part in parts] + [(down, None) for down in downs]
        bias = None
        if any(part.bias is not None for part in parts):
            biases = [w.new_zeros(len(w)) if given is None else given for w, given in rows]
            bias = torch.cat(biases)
        alone = len(rows) == 1 and lasts
        weight = rows[0][0] if alone else torch.cat([weight for weight, _ in rows])
        self.product = laid_out_linear(weight, bias, _ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, out of all layers)."""
        out = self.product(x.to(self.dtype))
        if self.up is None:
            return out
        return out[:, : self.width].addmm_(out[:, self.width :], self.up)


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
