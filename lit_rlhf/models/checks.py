"""Checks at loading that our way of running a decoder gives what transformers' own gives."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.branches import branch_layout
from lit_rlhf.models.loading import embeddings
from lit_rlhf.types import BranchedBatch

if TYPE_CHECKING:
    from lit_rlhf.models.backbone import Backbone

_TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}  # of the largest absolute value


@torch.no_grad()
def check_backbone(backbone: "Backbone") -> None:
    """Compare logits with the model's own, and the shared with the expanded way, on a prompt with two branches.

    Costs three forwards of a few tokens. Catches architectures that do something to logits that we don't know of, and
    decoders that ignore the mask or the positions.

    Raises:
        ConfigurationError: They differ.
    """
    if backbone.device.type == "meta":
        return
    batch = _probe(backbone)
    runner = backbone._runner  # noqa: SLF001 - a part of the backbone in a file of its own
    layout = branch_layout(batch["branch_ids"], 2)
    rows = runner.expanded(batch, layout, 2)
    if backbone._lm_head is not None:  # noqa: SLF001
        _check_logits(backbone, batch, rows.hidden)
    if runner.obstacle is None and runner.branching != "expanded":
        branched = runner.shared(batch, layout)
        if not _close(branched.hidden[branched.last], rows.hidden[rows.last]):
            runner.require_shared(
                f"{type(backbone.decoder).__name__} gives other states for a branch under a mask than for its own row"
            )


def _check_logits(backbone: "Backbone", batch: BranchedBatch, hidden: Tensor) -> None:
    ids = batch["input_ids"][:, :2]  # the prompt and the first branch are the first expanded row
    theirs = backbone.model(input_ids=ids, use_cache=False).logits.float()[0]
    ours = backbone.logits(hidden[:2])
    if not _close(ours, theirs):
        raise ConfigurationError(
            f"{type(backbone.model).__name__} computes logits from hidden states in a way that isn't known here "
            f"(largest difference {float((ours - theirs).abs().max()):.3g}); log-probs would be wrong. Known are a "
            "linear head with final_logit_softcapping, logit_scale and logits_scaling of the config."
        )


def _probe(backbone: "Backbone") -> BranchedBatch:
    vocabulary = embeddings(backbone.model).shape[0]
    ids = torch.tensor([[1, 2, 3]], device=backbone.device) % vocabulary
    branch_ids = torch.tensor([[0, 1, 2]], device=backbone.device)
    positions = torch.tensor([[0, 1, 1]], device=backbone.device)
    return BranchedBatch(input_ids=ids, branch_ids=branch_ids, position_ids=positions)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = _TOLERANCE.get(ours.dtype if ours.dtype in _TOLERANCE else torch.float32, 1e-3)
    tolerance = max(tolerance, _TOLERANCE.get(theirs.dtype, 1e-3))
    limit = tolerance * float(theirs.abs().max()) + tolerance
    return bool((ours.float() - theirs.float()).abs().max() <= limit)
