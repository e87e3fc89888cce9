"""Generation with the policy's own weights, in this process."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.transformers import cache_argument, takes_attention_functions
from lit_rlhf.models import Backbone, evaluating, gathered, in_step
from lit_rlhf.models.branched import MASKABLE_LAYERS
from lit_rlhf.models.windows import known_window, unknown_window, windows_by_layer
from lit_rlhf.options import check_option
from lit_rlhf.rollout.base import LocalEngine, RolloutRequest, Sampling, end_tokens
from lit_rlhf.rollout.kv_cache import DecodeCache, KeyValues
from lit_rlhf.rollout.sampling import draw_tokens
from lit_rlhf.rollout.steps import EAGER, DecodeStep, choose_step, pace_of, packs
from lit_rlhf.seeding import uniforms
from lit_rlhf.types import Generation

_PREFILL_TOKENS = 8192

Listener = Callable[[Tensor, Tensor], None]
"""Told of the rows (n,) that got a token in a step, by their place in the request, and of the tokens (n,)."""


class NativeEngine(LocalEngine):
    """The default engine: the policy's own weights, nothing to synchronise, and log-probs that need no second pass.

    A prompt is computed once for all its samples, and its keys and values are stored once. Rows that have finished
    leave the batch. A token is drawn by inverse CDF from one uniform number that depends on the row's seed and the step
    alone, so a completion is the same whatever else is in the batch (but where rounding, which depends on the batch's
    shape, moves the boundary between two tokens across that number).

    Args:
        max_batch_size: Most sequences that are decoded at a time; more are decoded one batch after another, prompts of
            similar length together. Memory grows with it: keys and values of every layer, and two float32 numbers per
            token of the vocabulary. None decodes all at once.
        dequantize: Decode a base of 4 or 8 bits from a copy of its layers in float, which is made for each rollout and
            takes 4 or 2 times their memory until its end (on a GPU, where there is room for it twice). Otherwise each
            step dequantizes them.

    `listeners` are told of each step's tokens when they are drawn, for who shows text while it is written.

    Raises:
        ConfigurationError: The size is below 1.
    """

    way_out = "Use HFEngine."

    def __init__(self, max_batch_size: int | None = None, dequantize: bool = False) -> None:
        valid = max_batch_size is None or max_batch_size >= 1
        allowed = "at least 1, or null for no limit"
        check_option(valid, self, "max_batch_size", max_batch_size, allowed)
        self.max_batch_size = max_batch_size
        self.dequantize = dequantize
        self.listeners: list[Listener] = []

    def longest(self, backbone: Backbone) -> int | None:
        """A window of which it isn't known in which layers it is."""
        return unknown_window(_config(backbone))

    def window(self, backbone: Backbone) -> int | None:
        """The smallest of those that layers have."""
        return known_window(_config(backbone))

    def sample(self, backbone: Backbone, request: RolloutRequest) -> Generation:
        """See `RolloutEngine.sample`."""
        seeds, sampling, samples = request.seeds, request.sampling, request.num_samples
        lengths = request.prompts.mask.sum(-1)
        check_decodable(backbone, request.longest)
        device = seeds.device
        out = GeneratedRows(len(seeds), sampling.max_new_tokens, backbone.pad_token_id, device)
        out.listeners = self.listeners
        ends = end_tokens(backbone, sampling, device)
        head = None if request.values is None else backbone.head(request.values)
        own = list(self._batches(lengths, samples))
        batches = in_step(backbone, own)
        steps = len(batches) * sampling.max_new_tokens
        packed = packs(backbone, steps, dequantize=self.dequantize)
        # Prompts pass through layers as in training; what follows has a copy of them, or all of them.
        whole = gathered(backbone, layers=not packed)
        with whole, evaluating(backbone), backbone.use_role(request.role):
            step = choose_step(backbone, steps, packed=packed)
            for place, (prompts, which) in enumerate(batches):
                ids = request.prompts.ids[prompts, : int(lengths[prompts].max())]
                rows = (prompts[:, None] * samples + which).flatten()
                decoder = Decoder(backbone, step, ids, lengths[prompts], len(which))
                if place < len(own):
                    decode(decoder, rows, seeds[rows], ends, sampling, out, head)
        return out.generation()

    def _batches(self, lengths: Tensor, num_samples: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Prompts (b,) and samples of each (k,) that are decoded together, with b * k within the limit."""
        samples = torch.arange(num_samples, device=lengths.device)
        if self.max_batch_size is None or len(lengths) * num_samples <= self.max_batch_size:
            yield torch.arange(len(lengths), device=lengths.device), samples
            return
        together = max(self.max_batch_size // num_samples, 1)
        for prompts in lengths.argsort(stable=True).split(together):
            for part in samples.split(self.max_batch_size):
                yield prompts, part


class GeneratedRows:
    """What has been generated, in the order of the request."""

    def __init__(self, rows: int, steps: int, pad: int, device: torch.device) -> None:
        self.pad = pad
        self.tokens = torch.full((rows, steps), pad, dtype=torch.int64, device=device)
        # In float32 whatever the default dtype, which `precision: 64-true` sets.
        self.logprobs = torch.zeros(rows, steps, dtype=torch.float32, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.values: Tensor | None = None
        self.listeners: list[Listener] = []

    def append(
        self,
        rows: Tensor,
        live: Tensor,
        step: int,
        tokens: Tensor,
        logprobs: Tensor,
        values: Tensor | None,
    ) -> None:
        """Store a step's tokens of the rows that are live, and the values of the states they are taken from."""
        self.tokens[rows, step] = torch.where(live, tokens, self.pad)
        self.logprobs[rows, step] = torch.where(live, logprobs.float(), 0.0)
        self.lengths[rows] += live
        if values is not None:
            if self.values is None:
                self.values = torch.zeros_like(self.logprobs)
            self.values[rows, step] = torch.where(live, values.float(), 0.0)
        for listener in self.listeners:
            listener(rows[live], tokens[live])

    def generation(self) -> Generation:
        """All rows, as wide as the longest.

        Raises:
            FloatingPointError: A log-prob is not finite.
        """
        mask = torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]
        if not bool(self.logprobs.isfinite().all()):
            row = int((~self.logprobs.isfinite()).any(-1).nonzero()[0])
            raise FloatingPointError(
                f"The model gave log-probs that are not finite while generating sequence {row}: its weights have "
                "diverged or overflow in their dtype. Lower the learning rate, clip gradients, or load it in bfloat16 "
                "or float32."
            )
        width = max(int(self.lengths.max()), 1) if len(self.lengths) else 1
        own, mask = (x[:, :width].contiguous() for x in (self.tokens, mask))
        logprobs = self.logprobs[:, :width].contiguous()
        values = None if self.values is None else self.values[:, :width].contiguous()
        return Generation(own, mask, self.finished, logprobs, values)


class Decoder:
    """A batch of prompts, each with the same number of samples, in the midst of its decode.

    Args:
        backbone: Whose weights to use, in the role that is active.
        step: How a step is made.
        ids: (b, P) right-padded prompts.
        lengths: (b,) of them.
        num_samples: Rows of each, which are neighbours.
    """

    hidden: Tensor
    """(rows, h) last states."""
    logits: Tensor
    """(rows, V) of the next token."""
    pace = EAGER

    def __init__(
        self, backbone: Backbone, step: DecodeStep, ids: Tensor, lengths: Tensor, num_samples: int
    ) -> None:
        self.step, self.pace = step, pace_of(step)
        hidden, self.cache = prefill(backbone, ids, lengths, num_samples)
        rows = self.cache.prompt_of_row
        self.logits, self.hidden = backbone.logits(hidden)[rows], hidden[rows]

    def select(self, rows: Tensor) -> None:
        """Let all other rows leave."""
        self.cache.select(rows)

    def advance(self, tokens: Tensor) -> None:
        """Take one more token (rows,) of each."""
        self.cache.make_room(self.pace.room)
        self.hidden, self.logits = self.step(tokens, self.cache)
        self.cache.advance()


def decode(
    decoder: Decoder,
    rows: Tensor,
    seeds: Tensor,
    ends: Tensor,
    sampling: Sampling,
    out: GeneratedRows,
    head: nn.Module | None = None,
) -> None:
    """Complete what a decoder has begun; `rows` says where its rows stand in `out`."""
    live = torch.ones_like(rows, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        values = None if head is None else head(decoder.hidden)
        banned = ends if step < sampling.min_new_tokens else None
        tokens, logprobs = draw_tokens(decoder.logits, uniforms(seeds, step), sampling, banned)
        out.append(rows, live, step, tokens, logprobs, values)
        ended = live & torch.isin(tokens, ends)
        out.finished[rows] |= ended
        live = live & ~ended
        if step + 1 == sampling.max_new_tokens:
            return
        if (step + 1) % decoder.pace.look_every == 0:
            staying = int(live.sum())
            if staying == 0:
                return
            if (len(live) - staying) * decoder.pace.worth_leaving >= len(live):
                stay = live.nonzero()[:, 0]
                decoder.select(stay)
                rows, seeds, tokens, live = rows[stay], seeds[stay], tokens[stay], live[stay]
        decoder.advance(tokens)


def prefill(
    backbone: Backbone, ids: Tensor, lengths: Tensor, num_samples: int
) -> tuple[Tensor, DecodeCache]:
    """Last hidden states (b, h) of right-padded prompts and a cache to go on from, one prompt computed for all samples.

    Padding stands behind the tokens, so that causal attention never sees it and no mask is needed.
    """
    size = max(_PREFILL_TOKENS // ids.shape[1], 1)
    states: list[Tensor] = []
    layers: list[list[KeyValues]] = []
    own = list(zip(ids.split(size), (lengths - 1).split(size), strict=True))
    for part, ends in in_step(backbone, own):
        cache = DynamicCache()
        positions = torch.arange(part.shape[1], device=ids.device)[None]
        output = backbone.decoder(
            input_ids=part,
            position_ids=positions,
            use_cache=True,
            **{cache_argument(backbone.decoder): cache},
        )
        states.append(output.last_hidden_state[torch.arange(len(part), device=ids.device), ends])
        layers.append([KeyValues.of(layer, len(part)) for layer in cache.layers])
    count = len(own)
    joined = [KeyValues.join(parts[:count]) for parts in zip(*layers, strict=True)]
    windows = windows_by_layer(_config(backbone))
    return torch.cat(states[:count]), DecodeCache(joined, lengths, num_samples, windows)


def check_decodable(backbone: Backbone, longest: int) -> None:
    """Refuse a model whose attention can't be decoded here, or not to so many positions."""
    config, name = _config(backbone), type(backbone.decoder).__name__
    way_out = "Use lit_rlhf.rollout.HFEngine for this model."
    if not takes_attention_functions(backbone.decoder):
        raise ConfigurationError(
            f"{name} lets no attention function be chosen, which NativeEngine's decode needs. {way_out}"
        )
    kinds = set(getattr(config, "layer_types", None) or []) - MASKABLE_LAYERS
    if kinds or getattr(config, "num_kv_shared_layers", None):
        what = f"of the kind {sorted(kinds)}" if kinds else "that share keys and values"
        raise ConfigurationError(
            f"{name} has layers {what}, which NativeEngine can't decode. {way_out}"
        )
    window = unknown_window(config)
    if window is not None and longest > window:
        raise ConfigurationError(
            f"The longest prompt and max_new_tokens make {longest} positions, more than the window of {window} of "
            f"{name}, of which NativeEngine can't tell where it holds. Shorten them. Or: "
            f"{way_out[0].lower()}{way_out[1:]}"
        )


def _config(backbone: Backbone) -> PretrainedConfig:
    config: PretrainedConfig = backbone.model.config.get_text_config()
    return config
