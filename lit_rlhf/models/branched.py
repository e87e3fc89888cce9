"""The branched forward: hidden states of prompts with K branches, in one of two ways with the same result.

- **shared**: one row per prompt, all branches behind it; the prompt is computed once. Attention computes prompts and
  branches apart where the kernel is ours, else whole rows under a mask.
- **expanded**: K ordinary rows per prompt, for attention kernels and decoders that take no such mask.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.branches import (
    BranchLayout,
    branch_attention_mask,
    branch_layout,
    branch_parts,
    branch_segments,
    existing,
    expand_branches,
    pack_branches,
)
from lit_rlhf.functional.logprobs import product_dtype
from lit_rlhf.internals.transformers import accepts, attention_of
from lit_rlhf.models.kernels.attention import Apart, apart, computes_apart, flash_serves
from lit_rlhf.models.specs import Branching
from lit_rlhf.models.windows import window_of
from lit_rlhf.types import BranchedBatch

_SWITCHING_ROPES = ("longrope", "dynamic")
MASKABLE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class BranchStates(NamedTuple):
    """Hidden states and where in them the branches lie; N = B * K."""

    hidden: Tensor  # (rows * length, h)
    source: Tensor  # (N, T) index of the state that predicts each token
    last: Tensor  # (N,) index of the state at each branch's last token
    mask: Tensor  # (N, T) bool
    tokens: Tensor  # (N, T) int64, 0 where masked
    layout: BranchLayout

    def positions(self) -> Tensor:
        """Indices into (N * T) of the tokens that exist."""
        if self.mask.is_meta:  # how many there are can't be known: all
            return torch.arange(self.mask.numel(), device=self.mask.device)
        return existing(self.layout).to(self.mask.device, non_blocking=True)

    def before(self, token_id: int) -> Tensor:
        """(N,) index of the state at each branch's last token other than `token_id`, else at the prompt's last."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        # Up to that token.
        length = ((self.mask & (self.tokens != token_id)) * (steps + 1)).amax(-1)
        inner = self.source.gather(1, length.clamp_max(len(steps) - 1)[:, None]).squeeze(1)
        return torch.where(length == self.mask.sum(-1), self.last, inner)


def pack(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    tokens: Tensor,
    mask: Tensor,
    pad_token_id: int = 0,
    lengths: Tensor | None = None,
) -> BranchedBatch:
    """Prompts and their completions as a batch; see `lit_rlhf.functional.branches.pack_branches`."""
    packed = pack_branches(prompt_ids, prompt_mask, tokens, mask, pad_token_id, lengths)
    batch = BranchedBatch(
        input_ids=packed.input_ids, branch_ids=packed.branch_ids, position_ids=packed.position_ids
    )
    if lengths is not None:
        batch["lengths"] = lengths
    return batch


def select_rows(
    batch: BranchedBatch, rows: Tensor | slice, width: int | None = None
) -> BranchedBatch:
    """Some rows of a batch, and of those the first `width` positions."""
    return BranchedBatch(
        input_ids=batch["input_ids"][rows, :width],
        branch_ids=batch["branch_ids"][rows, :width],
        position_ids=batch["position_ids"][rows, :width],
    )


def spread(values: Tensor, positions: Tensor, size: torch.Size) -> Tensor:
    """Lay numbers out at positions of a tensor of zeros."""
    return values.new_zeros(size.numel()).index_copy(0, positions, values).view(size)


@dataclass(frozen=True)
class Costs:
    """FLOPs of a decoder's forward.

    Attributes:
        per_token: Of the linear layers, for one token.
        per_pair: Of attention, for one query and one key in all layers.
        causal_share: Share of the pairs that the kernel computes in plain causal attention.
    """

    per_token: float
    per_pair: float
    causal_share: float

    def shared(self, rows: int, length: int) -> float:
        """Of B rows under a mask, which makes kernels compute all pairs."""
        return rows * length * (self.per_token + length * self.per_pair)

    def split(
        self, rows: int, length: int, prompt: int, sequences: int, time: int, *, flash: bool = False
    ) -> float:
        """Of B rows whose prompts and N branches are computed apart, in flash kernels or under a mask."""
        own = time * (self.causal_share if flash else 1.0)
        pairs = rows * prompt**2 * self.causal_share + sequences * time * (prompt + own)
        return rows * length * self.per_token + pairs * self.per_pair

    def expanded(self, sequences: int, length: int) -> float:
        """Of N plain causal rows."""
        return sequences * length * (self.per_token + length * self.per_pair * self.causal_share)

    @staticmethod
    def of(trunk: nn.Module, config: PretrainedConfig, attention: str) -> "Costs":
        """Count them from the linear layers, experts and the config."""
        weights = 0.0
        for module in trunk.modules():
            if isinstance(module, Conv1D):
                weights += module.nx * module.nf
            elif isinstance(module, nn.Linear):
                weights += module.in_features * module.out_features
            elif not isinstance(module, nn.Conv1d):
                own = module.parameters(recurse=False)
                weights += sum(used_weights(each, config) for each in own if each.dim() == 3)
        heads = number_of_heads(config)
        return Costs(
            2.0 * weights,
            4.0 * heads * head_width(config) * config.num_hidden_layers,
            1.0 if attention == "eager" else 0.5,
        )


def used_weights(weight: Tensor, config: PretrainedConfig) -> float:
    """Numbers of a weight that a token is multiplied with: of experts in one array (E, ...) those that it passes."""
    chosen = config.to_dict().get("num_experts_per_tok") if weight.dim() == 3 else None
    return weight.numel() * min(chosen / weight.shape[0], 1.0) if chosen else float(weight.numel())


def number_of_heads(config: PretrainedConfig) -> int:
    """Of a layer's queries; 0 where there are none."""
    heads = config.to_dict().get("num_attention_heads")  # attributes that differ by layer raise
    return heads or getattr(config, "num_attention_heads", None) or 0


def head_width(config: PretrainedConfig) -> int:
    """Numbers of a head."""
    width: int | None = config.to_dict().get("head_dim")
    return width or config.hidden_size // max(number_of_heads(config), 1)


class BranchRunner:
    """Runs a trunk over branched batches.

    Args:
        trunk: The transformers `*Model`, adapters injected.
        config: Its text config.
        attention: The attention implementation.
        branching: "shared", "expanded", or "auto": the one with fewer FLOPs for each batch.

    Raises:
        ConfigurationError: "shared" is asked of a decoder or kernel that can't take the mask.
    """

    def __init__(
        self, trunk: nn.Module, config: PretrainedConfig, attention: str, branching: Branching
    ) -> None:
        self.trunk = trunk
        self.config = config
        self.branching = branching
        self.takes_positions = "position_ids" in accepts(trunk)
        self.obstacle = self._find_obstacle(config, attention)
        self.window = window_of(config)
        self.limit = length_limit(config)
        self.additive_mask = attention_of(config) == "eager"
        self.splits = computes_apart(config)
        self.head_width = head_width(config)
        self.costs = Costs.of(trunk, config, attention)
        if branching == "shared":
            self.require_shared()

    def require_shared(self, reason: str | None = None) -> None:
        """Raise if the shared way can't run, or from now on can't for a reason found elsewhere."""
        self.obstacle = self.obstacle or reason
        if self.obstacle and self.branching == "shared":
            raise ConfigurationError(
                f"branching='shared' can't run: {self.obstacle}. Set branching='auto' or 'expanded'."
            )

    def __call__(self, batch: BranchedBatch, num_branches: int) -> BranchStates:
        """Hidden states of a batch; K = `num_branches`.

        Raises:
            DataError: There are no branches.
            ConfigurationError: A text is longer than the length from which the model turns its positions otherwise.
        """
        if num_branches < 1:
            raise DataError(
                "The batch holds prompts without completions, so there is nothing to train on or to score. Use the "
                "DataModule that fits the module, such as PreferenceDataModule for pairs."
            )
        layout = layout_of(batch["branch_ids"], num_branches, batch.get("lengths"))
        self._check_limit(batch)
        if self.shares(batch["branch_ids"], layout):
            return self.shared(batch, layout)
        return self.expanded(batch, layout, num_branches)

    def shares(self, branch_ids: Tensor, layout: BranchLayout) -> bool:
        """Whether a batch runs the shared way."""
        rows, branches, _ = layout.mask.shape
        length = branch_ids.shape[1]
        if branch_ids.is_meta:  # lengths of expanded rows can't be known there
            return True
        too_long = self.window is not None and length > self.window
        if self.branching == "expanded" or self.obstacle or too_long:
            if self.branching == "shared":
                raise ConfigurationError(
                    f"branching='shared' can't run: a row has {length} tokens, more than the sliding window of "
                    f"{self.window}. Set branching='auto'."
                )
            return False
        if self.branching == "shared":
            return True
        # One branch is an ordinary causal row already, and without a mask its kernel is the faster.
        if branches == 1:
            return False
        prompts = layout.lengths[:, 0]
        longest = int((prompts + layout.lengths[:, 1:].amax(-1)).max())
        expanded = self.costs.expanded(rows * branches, longest)
        if self.splits:
            sizes = rows, length, int(prompts.max()), rows * branches, layout.mask.shape[-1]
            return self.costs.split(*sizes, flash=self.is_flash()) <= expanded
        return self.costs.shared(rows, length) <= expanded

    def shared(self, batch: BranchedBatch, layout: BranchLayout) -> BranchStates:
        """One row per prompt."""
        branch_ids = batch["branch_ids"]
        mask = branch_attention_mask(branch_ids)
        if self.additive_mask:
            dtype = next(p.dtype for p in self.trunk.parameters() if p.is_floating_point())
            least = torch.finfo(dtype).min
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, least)
        parts: Apart = None
        if self.splits and not branch_ids.is_meta:
            divide = branch_segments if self.is_flash() else branch_parts
            parts = divide(branch_ids, layout)
        with apart(parts):
            output = self.trunk(
                input_ids=batch["input_ids"],
                attention_mask=mask,
                position_ids=batch["position_ids"],
                use_cache=False,
            )
        return _gather(output.last_hidden_state, batch["input_ids"], layout)

    def is_flash(self) -> bool:
        """Whether prompts and branches are computed apart by flash kernels."""
        weight = next(p for p in self.trunk.parameters() if p.is_floating_point())
        dtype = product_dtype(weight)
        return self.splits and flash_serves(weight.device, dtype, self.head_width)

    def expanded(
        self, batch: BranchedBatch, layout: BranchLayout, num_branches: int
    ) -> BranchStates:
        """K rows per prompt. Padding is on the right, so that causal attention never sees it and no mask is needed."""
        input_ids, branch_ids = batch["input_ids"], batch["branch_ids"]
        if num_branches == 1:
            rows, own = input_ids, layout
        else:
            expanded = expand_branches(input_ids, branch_ids, layout)
            rows, own = expanded.input_ids, layout_of(expanded.branch_ids, 1, expanded.lengths)
        return _gather(self.trunk(input_ids=rows, use_cache=False).last_hidden_state, rows, own)

    def _check_limit(self, batch: BranchedBatch) -> None:
        if self.limit is None or batch["branch_ids"].is_meta:
            return
        longest = int(batch["position_ids"].max()) + 1
        if longest > self.limit:
            raise ConfigurationError(
                f"A text has {longest} tokens, and {type(self.trunk).__name__} turns its positions otherwise where a "
                f"batch holds one of more than {self.limit} (its rope type), so that rows would depend on each other. "
                "Keep prompts and completions within that length (max_prompt_length, max_completion_length)."
            )

    def _find_obstacle(self, config: PretrainedConfig, attention: str) -> str | None:
        if attention not in ("sdpa", "eager"):
            return f"attention={attention!r} takes no mask of its own (sdpa and eager do)"
        if not self.takes_positions:
            return f"{type(self.trunk).__name__} takes no position_ids, and branches need them"
        others = set(getattr(config, "layer_types", None) or []) - MASKABLE_LAYERS
        if others:
            return f"{type(self.trunk).__name__} has layers {sorted(others)}, in which no mask tells branches apart"
        return None


def layout_of(branch_ids: Tensor, num_branches: int, lengths: Tensor | None = None) -> BranchLayout:
    """`branch_layout`, and on the meta device, where no lengths can be known, a layout of the largest size."""
    if not branch_ids.is_meta:
        return branch_layout(branch_ids, num_branches, lengths)
    shape = (branch_ids.shape[0], num_branches, branch_ids.shape[1])
    index = branch_ids.new_empty(shape)
    lengths = branch_ids.new_empty(shape[0], 1 + num_branches)
    return BranchLayout(index, index, index > 0, index[..., 0], lengths)


def _gather(hidden: Tensor, input_ids: Tensor, layout: BranchLayout) -> BranchStates:
    rows, length, width = hidden.shape
    sequences = layout.mask.shape[0] * layout.mask.shape[1]
    offset = torch.arange(rows, device=input_ids.device)[:, None] * length
    mask = layout.mask.view(sequences, -1)
    tokens = input_ids.gather(1, layout.index.flatten(1)).view(sequences, -1) * mask
    return BranchStates(
        hidden=hidden.reshape(rows * length, width),
        source=(layout.source.flatten(1) + offset).view(sequences, -1),
        last=(layout.last + offset).view(sequences),
        mask=mask,
        tokens=tokens,
        layout=layout,
    )


def length_limit(config: PretrainedConfig) -> int | None:
    """The longest text before rotary positions turn otherwise for the whole batch; None if they never do."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [
        part.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for part in kinds
        if part.get("rope_type") in _SWITCHING_ROPES
    ]
    return min(limits, default=None)
