"""Run as a script by each of two gloo processes: every preference loss on this rank's rows of a batch.

What a loss is, and what is logged of it, must not depend on how many processes a batch is dealt to.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.distributed import num_ranks, sum_over_ranks
from lit_rlhf.modules.means import row_means
from tests.reference.preference_stats import concrete

ROWS = 9
"""So that one of the two has a row more."""
Found = dict[str, tuple[Tensor, dict[str, float]]]
"""Of each loss: its gradient by the log-probs of all rows, and the means of its metrics."""


def losses() -> dict[str, o.PreferenceLoss]:
    """By name, in training, which some remember."""
    names = concrete(o.PreferenceLoss) - {"WeightedSum"}
    made: dict[str, o.PreferenceLoss] = {name: getattr(o, name)() for name in sorted(names)}
    made["BetaDPO"] = o.BetaDPO(0.5, drop=0.25)
    made["WeightedSum"] = o.WeightedSum([o.IPO(), o.NLL()], [1.0, 0.3])
    for name in ("AOT", "UnpairedAOT"):
        ordered = o.WeightedSum([getattr(o, name)(), o.NLL()], [1.0, 0.3])
        made[f"WeightedSum of {name}"] = o.WeightedSum([o.IPO(), ordered])
    return {name: loss.train() for name, loss in made.items()}


def on_rows(part: slice) -> Found:
    """Of this rank's share of the mean over the batch of all."""
    return {name: _one(loss, part) for name, loss in losses().items()}


def _one(loss: o.PreferenceLoss, part: slice) -> tuple[Tensor, dict[str, float]]:
    draw = torch.Generator().manual_seed(0)
    branches = (loss.num_branches or 3) + loss.needs_mismatched
    lengths = torch.randint(1, 6, (ROWS, branches), generator=draw)
    mask = torch.arange(5) < lengths[..., None]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    logprobs = (-rand(ROWS, branches, 5) * mask).requires_grad_()
    ref, kl, collision = (sign * rand(ROWS, branches, 5) * mask for sign in (-1, 1, -1))
    extra = {
        "kl": kl.sum(-1)[part],
        "collision": collision.sum(-1)[part],
        "value": rand(ROWS)[part],
    }
    policy, reference = (
        o.PreferenceStats(x.sum(-1)[part], lengths[part], x[part], mask[part], **extra)
        for x in (logprobs, ref)
    )
    columns: dict[str, Tensor] = {"label": torch.arange(ROWS) % 3 == 0, "weight": 0.5 + rand(ROWS)}
    columns |= {"p_chosen": rand(ROWS), "margin": rand(ROWS)}
    columns["score"] = rand(ROWS) if branches == 1 else rand(ROWS, branches)
    output = loss.of_batch(policy, reference, {name: x[part] for name, x in columns.items()})
    count = sum_over_ranks(torch.tensor(float(len(output.loss))))
    (output.loss.sum() * num_ranks() / count).backward()
    assert logprobs.grad is not None
    means: Any = row_means(output.metrics, sum_over_ranks)
    return logprobs.grad, {name: mean for name, (mean, _) in means.items()}


def main(rank: int, directory: Path) -> None:
    """Average the ranks' gradients, as DDP does, and write them with the means."""
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )
    averaged = {}
    for name, (gradient, means) in on_rows(slice(rank, None, 2)).items():
        dist.all_reduce(gradient)
        averaged[name] = gradient / 2, means
    torch.save(averaged, directory / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
