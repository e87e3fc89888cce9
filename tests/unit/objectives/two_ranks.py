"""Run as a script by each of two gloo processes: gradients of batch-coupled losses on this rank's part of a batch, as samplers deal it."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.distributed import num_ranks, sum_over_ranks
from lit_rlhf.types import SequenceStats

ROWS = 9
LOSSES: dict[str, Callable[[], o.PreferenceLoss]] = {
    #"AOT": lambda: o.AOT(0.5),
    "UnpairedAOT": lambda: o.UnpairedAOT(0.5),
    #"BetaDPO": lambda: o.BetaDPO(0.5, drop=0.25),
    "BCOPair": lambda: o.BCOPair(0.5),
    "KTO": lambda: o.KTO(0.5),
    "BCO": lambda: o.BCO(0.5),
}


def gradients(part: slice) -> dict[str, Tensor]:
    """(ROWS, 2) of each loss by the log-probs, of this rank's share of its mean over the batch of all."""
    draw = torch.Generator().manual_seed(0)
    logprobs, ref_logprobs = -torch.rand(2, ROWS, 2, generator=draw, dtype=torch.float64)
    weights = 0.5 + torch.rand(ROWS, generator=draw, dtype=torch.float64)
    lengths, labels = torch.ones(ROWS, 2, dtype=torch.int64), torch.arange(ROWS) % 3 == 0
    found = {}
    for name, make in LOSSES.items():
        policy = logprobs.clone().requires_grad_()
        loss = make().train()
        stats = (
            SequenceStats(policy[part], lengths[part]),
            SequenceStats(ref_logprobs[part], lengths[part]),
        )
        columns = {"label": labels[part], "weight": weights[part]}
        losses = loss.of_batch(*stats, columns).loss
        count = sum_over_ranks(torch.tensor(float(len(losses))))
        (losses.sum() * num_ranks() / count).backward()
        assert policy.grad is not None
        found[name] = policy.grad
    return found


def main(rank: int, directory: Path) -> None:
    """Average the ranks' gradients, as DDP does, and write them."""
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )
    averaged = {}
    for name, gradient in gradients(slice(rank, None, 2)).items():
        dist.all_reduce(gradient)
        averaged[name] = gradient / 2
    if rank == 0:
        torch.save(averaged, directory / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
