"""Keys and values of a decode: each prompt's once for all its samples, and an attention that reads them in place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.numerics import cumulative_sum
from lit_rlhf.internals.transformers import attention_of, set_attention

_NAME = "lit_rlhf_decode"
_current: ContextVar["DecodeCache"] = ContextVar("current_decode_cache")


class Grid(NamedTuple):
    """Where the rows of a ragged batch stand in a rectangle of prompts by samples."""

    fill: Tensor
    """(cells,) the row in each cell, prompt by prompt; cells without one repeat some row."""
    cell: Tensor
    """(rows,) the cell of each row."""


class KeyValues(NamedTuple):
    """Keys (n, heads, positions, dim) and values (n, heads, positions, value dim)."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, layer: object, rows: int) -> "KeyValues":
        """What a prefill has left in a layer of a transformers cache.

        Raises:
            ConfigurationError: The model keeps something else there than keys and values of each row's positions.
        """
        keys: Any = getattr(layer, "keys", None)
        values: Any = getattr(layer, "values", None)
        whole = isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[0] == rows
        if whole and isinstance(values, Tensor):
            return cls(keys, values)
        raise ConfigurationError(
            f"The model caches {type(layer).__name__}, not keys and values of every position, which is what "
            "NativeEngine decodes from. Use lit_rlhf.rollout.HFEngine for this model."
        )

    @classmethod
    def join(cls, parts: Sequence["KeyValues"]) -> "KeyValues":
        """Rows of several."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def roomier(self, room: int) -> "KeyValues":
        """The same with room for more positions behind."""
        rooms = [x.new_zeros(*x.shape[:2], room, x.shape[3]) for x in self]
        return KeyValues(*(torch.cat(parts, dim=2) for parts in zip(self, rooms, strict=True)))

    def select(self, rows: Tensor) -> "KeyValues":
        """Some of the rows."""
        return KeyValues(self.keys[rows], self.values[rows])


class Place:
    """Where the rows' own parts are written next, the same in each layer.

    A step that is recorded once and replayed has to read it from the device, where `follow` has put it. Such a step
    can't cut what isn't filled off either: it masks that.

    Args:
        filled: Positions of a row's own part that hold something.
    """

    def __init__(self, filled: int) -> None:
        self.filled = filled
        self.slot: Tensor | None = None
        self.behind: Tensor | None = None
        """(room,) float32: -inf where nothing is yet, when the step in the making has been made."""

    def follow(self, device: torch.device) -> None:
        """Put on the device what the host has counted, at the same address each time."""
        if self.slot is None:
            self.slot = torch.empty(1, dtype=torch.int64, device=device)
        self.slot.fill_(self.filled)

    def mask(self, room: int) -> None:
        """Read the device, for the step in the making."""
        assert self.slot is not None
        behind = torch.arange(room, device=self.slot.device) > self.slot
        self.behind = torch.zeros_like(behind, dtype=torch.float32).masked_fill_(behind, -torch.inf)


class DecodeLayer(CacheLayerMixin):
    """Keys and values of one layer: those of the prompts, and those that each row has generated.

    A row's own part has room for more positions than are filled, so that a step writes one slot and copies nothing.

    Args:
        prompts: Keys and values of B prompts.
        num_samples: Rows per prompt. With one, the row's own part begins with its prompt.
        place: Where the own part is written next.
    """

    is_sliding = False

    def __init__(self, prompts: KeyValues, num_samples: int, place: Place) -> None:
        super().__init__()
        self.is_initialized = True
        self.shared: KeyValues | None = None
        self.place = place
        self.own = prompts
        if num_samples > 1:
            self.shared = prompts
            none = [x[:, :, :0].repeat_interleave(num_samples, dim=0) for x in prompts]
            self.own = KeyValues(*none)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the layer is made from a prefill."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one more position of each row and hand it back: `attend` reads the others in place."""
        for buffer, states in zip(self.own, (key_states, value_states), strict=True):
            if self.place.slot is None:
                buffer[:, :, self.place.filled] = states[:, :, 0]
            else:
                buffer.index_copy_(2, self.place.slot, states.to(buffer.dtype))
        return key_states, value_states

    def attend(
        self, query: Tensor, bias: Tensor | None, grid: Grid | None, scale: float, cap: float | None
    ) -> Tensor:
        r"""$\mathrm{softmax}(s\,q k^\top + b)\,v$ of one query a row, over its prompt and what it has generated.

        Heads that share keys and values stand beside each other as the rows of one matrix product, and so do the
        samples of one prompt.

        Args:
            query: (rows, query heads, 1, dim).
            bias: (prompts, 1, 1, P) float32: -inf where a prompt is padded.
            grid: Where rows stand among the prompts, unless each prompt has all its samples, in order.
            scale: $s$.
            cap: The model squashes its scores to this range.

        Returns:
            (rows, query heads, value dim).
        """
        rows, heads, _, dim = query.shape
        query = query.reshape(rows, self.own.keys.shape[1], -1, dim)
        # The product is taken with the whole buffer, which is contiguous, and cut afterwards: on CPU that is twice as
        # fast.
        own, values = _scores(query, self.own.keys, scale, cap), self.own.values
        if self.place.behind is None:
            filled = self.place.filled + 1
            own, values = own[..., :filled], values[:, :, :filled]
        else:
            own = own + self.place.behind
        if self.shared is None:
            if bias is not None:
                own[..., : bias.shape[-1]] += bias
            return (own.softmax(-1).to(query.dtype) @ values).reshape(rows, heads, -1)
        keys = self.shared.keys
        prompt = _scores(_by_prompt(query, len(keys), grid), keys, scale, cap)
        prompt = prompt if bias is None else prompt + bias
        width = prompt.shape[-1]
        probs = torch.cat([_by_row(prompt, query, grid), own], dim=-1).softmax(-1).to(query.dtype)
        shared = _by_prompt(probs[..., :width], len(keys), grid) @ self.shared.values
        return (_by_row(shared, query, grid) + probs[..., width:] @ values).reshape(rows, heads, -1)

    def select(self, rows: Tensor, prompts: Tensor) -> None:
        """Keep some rows and prompts."""
        self.own = self.own.select(rows)
        if self.shared is not None and len(prompts) < len(self.shared.keys):
            self.shared = self.shared.select(prompts)

    def get_seq_length(self) -> int:
        """Positions per row, padding of prompts included."""
        shared = self.shared.keys.shape[2] if self.shared is not None else 0
        return self.place.filled + shared

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As transformers asks for it."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1


class DecodeCache(Cache):
    """The cache of a batch that is being decoded, for a decoder's own forward within `attending`.

    All live rows have generated the same number of tokens, so own parts need no mask, whatever the prompts' lengths.
    A step is made between `make_room` and `advance`.

    Args:
        prompts: Keys and values of B right-padded prompts, one per layer of the decoder.
        lengths: (B,) of the prompts.
        num_samples: Rows per prompt; the rows of a prompt are neighbours.
    """

    def __init__(self, prompts: Sequence[KeyValues], lengths: Tensor, num_samples: int) -> None:
        self.start = 0 if num_samples > 1 else prompts[0].keys.shape[2]
        self.place = Place(self.start)
        self.own_layers = [DecodeLayer(layer, num_samples, self.place) for layer in prompts]
        self.layout = 0
        """Changes when keys and values have moved to other memory."""
        super().__init__(layers=list(self.own_layers))
        self.lengths = lengths
        prompts_of = torch.arange(len(lengths), device=lengths.device)
        self.prompt_of_row = prompts_of.repeat_interleave(num_samples)
        self.width = int(lengths.max())
        self._arrange()

    @property
    def positions(self) -> Tensor:
        """(rows,) position of each row's next token, before its step."""
        slot = self.place.filled if self.place.slot is None else self.place.slot
        return self.lengths[self.prompt_of_row] + (slot - self.start)

    @property
    def room(self) -> int:
        """Positions that a row's own part can hold."""
        return self.own_layers[0].own.keys.shape[2]

    def make_room(self, more: int) -> None:
        """See that one more position can be written: room for some more is made where there is none."""
        if self.place.filled == self.room:
            self.layout += 1
            for layer in self.own_layers:
                layer.own = layer.own.roomier(more)

    def advance(self) -> None:
        """One more position has been written in every layer."""
        self.place.filled += 1

    def select(self, rows: Tensor) -> None:
        """Let all other rows leave, and the prompts that none is left of.

        Args:
            rows: (m,) ascending indices of current rows.
        """
        staying = self.prompt_of_row[rows]
        prompts, self.prompt_of_row = staying.unique_consecutive(return_inverse=True)
        self.lengths = self.lengths[prompts]
        self.layout += 1
        for layer in self.own_layers:
            layer.select(rows, prompts)
        self._arrange()

    def attend(self, layer: int, query: Tensor, scale: float, cap: float | None) -> Tensor:
        """See `DecodeLayer.attend`."""
        return self.own_layers[layer].attend(query, self.bias, self.grid, scale, cap)

    def _arrange(self) -> None:
        steps = torch.arange(self.width, device=self.lengths.device)
        padding = steps >= self.lengths[:, None]
        self.bias: Tensor | None = None
        if bool(padding.any()):
            bias = torch.zeros_like(padding, dtype=torch.float32)
            self.bias = bias.masked_fill_(padding, -torch.inf)[:, None, None]
        self.grid = _grid(self.prompt_of_row, len(self.lengths))


def configs_of(decoder: nn.Module) -> list[PreTrainedConfig]:
    """The configs that the attention layers of a decoder look their function up in."""
    found = [getattr(module, "config", None) for module in decoder.modules()]
    return list({id(c): c for c in found if isinstance(c, PreTrainedConfig)}.values())


@contextmanager
def attending(configs: Sequence[PreTrainedConfig], cache: DecodeCache) -> Iterator[None]:
    """Let attention layers of these configs read a cache, and put their own attention back at the end."""
    before = [attention_of(config) for config in configs]
    token = _current.set(cache)
    try:
        for config in configs:
            set_attention(config, _NAME)
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            set_attention(config, name)
        _current.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,  # noqa: ARG001 - what `update` gave back; the cache holds it by now
    value: Tensor,  # noqa: ARG001
    attention_mask: Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ConfigurationError(
                f"{type(module).__name__} wants {name!r} in its attention, which NativeEngine's decode doesn't know. "
                "Use lit_rlhf.rollout.HFEngine for this model."
            )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = _current.get().attend(cast("int", module.layer_idx), query, scale, softcap)
    return out[:, None], None


AttentionInterface.register(_NAME, _attention)


def _grid(prompt_of_row: Tensor, prompts: int) -> Grid | None:
    counts = prompt_of_row.bincount(minlength=prompts)
    width = int(counts.max())
    if width * prompts == len(prompt_of_row):
        return None
    rows = torch.arange(len(prompt_of_row), device=prompt_of_row.device)
    slot = rows - (cumulative_sum(counts) - counts)[prompt_of_row]
    cell = prompt_of_row * width + slot
    return Grid(rows.new_zeros(width * prompts).index_copy_(0, cell, rows), cell)


def _by_prompt(x: Tensor, prompts: int, grid: Grid | None) -> Tensor:
    """(rows, heads, g, d) -> (prompts, heads, samples * g, d)."""
    x = x if grid is None else x[grid.fill]
    _, heads, group, dim = x.shape
    x = x.reshape(prompts, -1, heads, group, dim).transpose(1, 2)
    return x.reshape(prompts, heads, -1, dim)


def _by_row(x: Tensor, like: Tensor, grid: Grid | None) -> Tensor:
    """(prompts, heads, samples * g, d) -> (rows, heads, g, d), with heads and g of `like`."""
    heads, group = like.shape[1:3]
    x = x.unflatten(2, (-1, group)).transpose(1, 2).reshape(-1, heads, group, x.shape[-1])
    return x if grid is None else x[grid.cell]


def _scores(query: Tensor, keys: Tensor, scale: float, cap: float | None) -> Tensor:
    scores = (query @ keys.transpose(2, 3)).float().mul_(scale)
    return scores if cap is None else (scores / cap).tanh() * cap
