"""Checks at loading that our way of running a decoder gives what transformers' own gives."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.branches import BranchLayout, branch_layout
from lit_rlhf.models.branched import BranchRunner, BranchStates, select_rows
from lit_rlhf.models.lm_head import LMHead
from lit_rlhf.models.loading import embeddings
from lit_rlhf.types import BranchedBatch

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_ROUNDED = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}
"""Of the largest absolute value, by the dtype of the weights."""
_LONG, _SHORT = 32, 6
"""Tokens of the probe's prompts and branches; the short ones for models beyond `_LARGE`."""
_LARGE = 4e9  # FLOPs per token


@torch.no_grad()
def check_decoder(model: PreTrainedModel, runner: BranchRunner, lm_head: LMHead | None) -> None:
    """Compare logits with the model's own, rows alone with rows beside others, and the shared with the expanded way.

    Costs a few forwards of at most 100 tokens. Catches architectures that do something to logits that we don't know of,
    decoders that ignore the mask or the positions, and those in which rows of a batch depend on each other.

    Raises:
        ConfigurationError: They differ.
    """
    if embeddings(model).is_meta:
        return
    size = _SHORT if runner.costs.per_token > _LARGE else _LONG
    limits = (runner.limit, getattr(runner.config, "max_position_embeddings", None))
    size = max(min([size, *(limit // 3 for limit in limits if limit)]), 1)
    batch = _probe(model, size)
    layout = branch_layout(batch["branch_ids"], 2)
    rows = runner.expanded(batch, layout, 2)
    name, dtype = type(runner.trunk).__name__, embeddings(model).dtype
    alone = select_rows(batch, slice(1, None))
    own = runner.expanded(alone, branch_layout(alone["branch_ids"], 2), 2)
    if not close(rows.hidden[rows.last][2:], own.hidden[own.last], dtype):
        raise ConfigurationError(
            f"{name} gives other states for a row beside a longer one than for the row alone, so that results would "
            "depend on what else is in a microbatch. It can't be trained here."
        )
    first = rows.hidden[rows.source[:, 0]]  # (4, h): the prompts' last states, for each branch
    if not close(first[::2], first[1::2], dtype):
        raise ConfigurationError(
            f"{name} gives a prompt other states before one answer than before another: it sees later tokens, so it is "
            "no causal decoder as it is configured (is_decoder)."
        )
    if lm_head is not None:
        _check_logits(model, lm_head, batch, rows.hidden, dtype)
    if runner.obstacle is None and runner.branching != "expanded":
        # Rows longer than a window that is known never share their prompt.
        short = max(min(size, (runner.window or 3 * size) // 3), 1)
        if short < size:
            batch = _probe(model, short)
            layout = branch_layout(batch["branch_ids"], 2)
            rows = runner.expanded(batch, layout, 2)
        if (difference := _shared_differs(runner, batch, layout, rows, dtype)) is not None:
            runner.require_shared(f"{name} {difference}")


def _shared_differs(
    runner: BranchRunner,
    batch: BranchedBatch,
    layout: BranchLayout,
    rows: BranchStates,
    dtype: torch.dtype,
) -> str | None:
    try:
        shared = runner.shared(batch, layout)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        return f"can't take a mask of branches ({' '.join(str(error).split())[:200]})"
    at = rows.mask  # (N, T): states before each token, and after the last one
    before = close(shared.hidden[shared.source[at]], rows.hidden[rows.source[at]], dtype)
    if before and close(shared.hidden[shared.last], rows.hidden[rows.last], dtype):
        return None
    return "gives other states for a branch under a mask than for its own row"


def _check_logits(
    model: PreTrainedModel,
    lm_head: LMHead,
    batch: BranchedBatch,
    hidden: Tensor,
    dtype: torch.dtype,
) -> None:
    length = int((batch["branch_ids"][0] < 2).sum())  # the first expanded row: prompt and branch 1
    ids = batch["input_ids"][:1, :length]
    theirs = model(input_ids=ids, use_cache=False).logits.float()[0]
    ours = lm_head.logits(hidden[:length])
    if not close(ours, theirs, dtype):
        raise ConfigurationError(
            f"{type(model).__name__} computes logits from hidden states in a way that isn't known here "
            f"(largest difference {float((ours - theirs).abs().max()):.3g}); log-probs would be wrong. Known are a "
            "linear head with final_logit_softcapping, logit_scale and logits_scaling of the config."
        )


def _probe(model: PreTrainedModel, size: int) -> BranchedBatch:
    """A long and a short prompt of two branches each; the longest row has thrice the size."""
    lengths = torch.tensor([[size, size, size], [(size + 1) // 2, 1, (size + 1) // 2]])
    branch_ids = torch.full((2, 3 * size), -1)
    positions = torch.zeros_like(branch_ids)
    for row, (prompt, *branches) in enumerate(lengths.tolist()):
        owners = [0] * prompt + [1] * branches[0] + [2] * branches[1]
        places = [*range(prompt), *(prompt + i for length in branches for i in range(length))]
        branch_ids[row, : len(owners)] = torch.tensor(owners)
        positions[row, : len(owners)] = torch.tensor(places)
    weight = embeddings(model)
    ids = (torch.arange(6 * size).view(2, -1) * 7 + 1) % min(weight.shape[0], 997)
    return BranchedBatch(
        input_ids=ids.to(weight.device),
        branch_ids=branch_ids.to(weight.device),
        position_ids=positions.to(weight.device),
    )


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that has about as many bits as products of a dtype are computed from.

    `torch.set_float32_matmul_precision` rounds float32 to TF32 ("high", 10 bits as in float16) or bfloat16 ("medium").
    """
    return _ROUNDED[torch.get_float32_matmul_precision()] if dtype == torch.float32 else dtype


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether states or logits (n, d) of two ways are alike up to the rounding of weights of a dtype.

    In float32 each token's must be; in lower precision it is their mean, for a rounding that sends a token to another
    expert moves that token far.
    """
    dtype = product_dtype(dtype)
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE[torch.float32])
    limit = tolerance * float(theirs.abs().max()) + tolerance
    gaps = (ours.float() - theirs.float()).abs().flatten(1).amax(-1)
    return bool((gaps.max() if dtype == torch.float32 else gaps.mean()) <= limit)
