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


class Sight(NamedTuple):
    """What a step's queries see, as float32 that is added to their scores: -inf where they don't; None: all."""

    prompts: Tensor | None
    """(prompts, 1, 1, P) of the prompts."""
    own: Tensor | None = None
    """(rows, 1, 1, room) of the rows' own parts."""


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
        self.behind = _hide(behind[None]).flatten()


class Scoring(NamedTuple):
    """What a layer makes of the products of queries and keys."""

    scale: float
    cap: float | None = None
    """Scores are squashed to this range (Gemma 2)."""
    sinks: Tensor | None = None
    """(query heads,): of each head the score of something to look at that has no value (gpt-oss)."""

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """float32 (n, heads, g, positions) of queries (n, heads, g, dim)."""
        scores = (query @ keys.transpose(2, 3)).float().mul_(self.scale)
        return scores if self.cap is None else (scores / self.cap).tanh() * self.cap

    def softmax(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        """Of scores (rows, heads, g, positions) of all that a query sees."""
        if self.sinks is None:
            return scores.softmax(-1).to(dtype)
        sinks = self.sinks.float().view(1, *scores.shape[1:3], 1).expand(len(scores), -1, -1, -1)
        return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1].to(dtype)


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

    def attend(self, query: Tensor, sight: Sight, grid: Grid | None, how: Scoring) -> Tensor:
        r"""$\mathrm{softmax}(s\,q k^\top + b)\,v$ of one query a row, over its prompt and what it has generated.

        Heads that share keys and values stand beside each other as the rows of one matrix product, and so do the
        samples of one prompt.

        Args:
            query: (rows, query heads, 1, dim).
            sight: $b$, which hides padding and what is beyond the layer's window.
            grid: Where rows stand among the prompts, unless each prompt has all its samples, in order.
            how: $s$, and what else the model does to scores.

        Returns:
            (rows, query heads, value dim).
        """
        rows, heads, _, dim = query.shape
        query = query.reshape(rows, self.own.keys.shape[1], -1, dim)
        # The product is taken with the whole buffer, which is contiguous, and cut afterwards: on CPU that is twice as
        # fast.
        own, values = how.scores(query, self.own.keys), self.own.values
        own = own if sight.own is None else own + sight.own
        if self.place.behind is None:
            filled = self.place.filled + 1
            own, values = own[..., :filled], values[:, :, :filled]
        else:
            own = own + self.place.behind
        if self.shared is None:
            if sight.prompts is not None:
                own[..., : sight.prompts.shape[-1]] += sight.prompts
            return (how.softmax(own, query.dtype) @ values).reshape(rows, heads, -1)
        keys = self.shared.keys
        prompt = how.scores(_by_prompt(query, len(keys), grid), keys)
        prompt = prompt if sight.prompts is None else prompt + sight.prompts
        width = prompt.shape[-1]
        probs = how.softmax(torch.cat([_by_row(prompt, query, grid), own], dim=-1), query.dtype)
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
        windows: Of each layer, the positions up to its own that a token sees; None: all.
    """

    def __init__(
        self,
        prompts: Sequence[KeyValues],
        lengths: Tensor,
        num_samples: int,
        windows: Sequence[int | None],
    ) -> None:
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
        self.windows = windows
        self.sights: dict[int | None, Sight] = {}
        """Of the step in the making, by window; they hold what was computed at its first layer."""
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
        self.sights.clear()
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

    def follow_device(self) -> None:
        """Let the step in the making, which is recorded, find where it stands on the device."""
        self.sights.clear()
        self.place.mask(self.room)

    def attend(
        self,
        layer: int,
        query: Tensor,
        scale: float,
        cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `DecodeLayer.attend` and `Scoring`."""
        window = self.windows[layer]
        if window not in self.sights:
            self.sights[window] = self._sight(window)
        how = Scoring(scale, cap, sinks)
        return self.own_layers[layer].attend(query, self.sights[window], self.grid, how)

    def _sight(self, window: int | None) -> Sight:
        slot = self.place.slot
        # A recorded step is made again, further on, until there is no more room.
        longest = (
            self.width - self.start + (self.room if slot is not None else self.place.filled + 1)
        )
        if window is None or longest <= window:
            return Sight(self.bias)
        device, lengths = self.lengths.device, self.lengths[:, None]
        now = lengths + ((self.place.filled if slot is None else slot) - self.start)
        first = now - (window - 1)  # that is seen
        slots = torch.arange(self.room, device=device)
        places = torch.where(slots < self.start, slots, lengths + slots - self.start)
        own = _hide(places < first)[self.prompt_of_row]
        if self.start:  # the own part begins with the prompt
            return Sight(self.bias, own)
        prompts = _hide(torch.arange(self.width, device=device) < first)
        return Sight(prompts if self.bias is None else prompts + self.bias, own)

    def _arrange(self) -> None:
        steps = torch.arange(self.width, device=self.lengths.device)
        padding = steps >= self.lengths[:, None]
        self.bias: Tensor | None = None
        if bool(padding.any()):
            self.bias = _hide(padding)
        self.grid = _grid(self.prompt_of_row, len(self.lengths))


def _hide(hidden: Tensor) -> Tensor:
    """(n, positions) bool -> (n, 1, 1, positions), to be added to scores."""
    seen = torch.zeros_like(hidden, dtype=torch.float32)
    return seen.masked_fill_(hidden, -torch.inf)[:, None, None]


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
    if kwargs.get("position_bias") is not None:
        raise ConfigurationError(
            f"{type(module).__name__} wants 'position_bias' in its attention, which NativeEngine's decode doesn't "
            "know. Use lit_rlhf.rollout.HFEngine for this model."
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = cast("int", module.layer_idx)
    out = _current.get().attend(layer, query, scale, softcap, kwargs.get("s_aux"))
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
