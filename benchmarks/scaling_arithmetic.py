"""What bounds a 7B PPO on 8 and on 64 GPUs, on paper: bytes, FLOPs, and the time that processes send, by link.

    python -m benchmarks.scaling_arithmetic [--markdown docs/SCALING.md]

The functions are those of `lit-rlhf estimate`. Nothing here was run on a GPU.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.markdown import insert, table
from lit_rlhf.estimate import CARDS, Estimate, Plan, Processes, Workload, bandwidth_of
from lit_rlhf.estimate.estimating import Rehearsal, rehearse, weigh
from lit_rlhf.models import LoraSpec, ModelSpec, ValueModel
from lit_rlhf.modules import PPOPolicyModule, Updates
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.testing.tokenizers import make_tokenizer

QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
"""Of Qwen2.5-7B."""
LOAD = Workload(prompts=16, prompt_tokens=512, completion_tokens=512, branches=1)
DISKS = {"2 GB/s disk": 2}
"""What is written there is read again."""
COUNTS = {8: ("nvlink4", "pcie5"), 64: ("ib400", "eth100")}
"""Processes, and the slowest link between two of them."""


def plans(tokenizer: str) -> dict[str, Plan]:
    """All weights by FSDP2, and LoRA by DDP."""
    base = ModelSpec(config=QWEN_7B, tokenizer=tokenizer, gradient_checkpointing=True)
    updates = Updates(epochs=4, minibatches=2, microbatch_tokens=8192)
    common: dict[str, Any] = {"sampling": Sampling(max_new_tokens=512), "updates": updates}
    whole = PPOPolicyModule(
        base,
        ModelReward("runs/reward/export", share_base=False, dtype="bfloat16"),
        value=ValueModel(spec=replace(base, dtype="float32"), start="spec"),
        **common,
    )
    adapted = PPOPolicyModule(
        replace(base, dtype="bfloat16", lora=LoraSpec(rank=16, alpha=32)),
        ModelReward("runs/reward/export"),
        **common,
    )
    card = CARDS["h100"]
    return {
        "all weights, FSDP2, bf16-mixed": Plan(
            whole, LOAD, card, torch.bfloat16, processes=Processes(8, "fsdp2")
        ),
        "LoRA, DDP, bfloat16": Plan(adapted, LOAD, card, processes=Processes(8, "ddp")),
    }


def flops_of(rehearsal: Rehearsal) -> float:
    """Of an iteration of one process."""
    repeats = {"update": rehearsal.run.repeats}
    return sum(phase.flops * repeats.get(phase.name, 1) for phase in rehearsal.phases)


def servers_table(rehearsals: dict[str, Rehearsal]) -> str:
    """Markdown: seconds until a vLLM server has new weights."""
    whole, adapted = (each.built.module.backbone for each in rehearsals.values())
    sizes = {
        "an adapter of rank 16, bfloat16": 2
        * sum(weight.numel() for weight in adapted.adapter_weights("policy").values()),
        "whole weights, bfloat16": 2 * sum(weight.numel() for weight in whole.model.parameters()),
    }
    links = {link: 1 for some in COUNTS.values() for link in some} | DISKS
    rows = []
    for name, size in sizes.items():
        times = [size * passes / bandwidth_of(link.split()[0]) for link, passes in links.items()]
        rows.append([name, f"{size / 1e9:.2f}", *(f"{x:.2f}" for x in times)])
    return table(["what", "GB", *(f"{link}, s" for link in links)], rows)


def memory_table(estimates: dict[int, Estimate]) -> str:
    """Markdown: GiB of a process by phase, of estimates by their number of processes."""
    columns = {
        "its share of weights": ("weights",),
        "of gradients and optimizer": ("gradients", "optimizer"),
        "whole at a time": ("gathered weights",),
        "copied to sample from": ("packed weights",),
    }
    rows = []
    for count, each in estimates.items():
        for phase in (phase for phase in each.phases if phase.parts):
            sizes = [
                sum(size for part, size in phase.parts.items() if part.startswith(names))
                for names in columns.values()
            ]
            sizes += [phase.total - sum(sizes), phase.total]
            rows.append([str(count), phase.name, *(f"{size / 2**30:.1f}" for size in sizes)])
    return table(["GPUs", "phase", *columns, "the rest", "all"], rows)


def runs_table(found: dict[tuple[str, int, str], tuple[Estimate, float]]) -> str:
    """Markdown, of estimates and their FLOPs."""
    columns = ["run", "GPUs", "link", "GiB a GPU", "fits 80 GB", "PFLOP a GPU", "GB sent a GPU"]
    columns += ["sampling, s", "other passes, s", "updates, s", "exchange, s", "bound by"]
    rows = []
    for (name, count, link), (each, flops) in found.items():
        seconds = {phase.name: phase.likely for phase in each.phases}
        groups = {
            "sampling": seconds["rollout"],
            "other passes": seconds["reward"] + seconds["reference"],
            "updates": seconds["update"] + seconds["optimizer"],
            "exchange": seconds["exchange"],
        }
        longest = max(groups, key=lambda key: groups[key])
        cells = [name, str(count), link, f"{each.need / 2**30:.1f}", "yes" if each.fits else "no"]
        cells += [f"{flops / 1e15:.1f}", f"{seconds['exchange'] * bandwidth_of(link) / 1e9:,.1f}"]
        rows.append([*cells, *(f"{value:.1f}" for value in groups.values()), longest])
    return table(columns, rows)


def main(args: Sequence[str] | None = None) -> None:
    """Print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="page to put the table into")
    options = parser.parse_args(args)
    found, rehearsals = {}, {}
    with TemporaryDirectory() as directory:
        make_tokenizer().save_pretrained(directory)
        for name, plan in plans(directory).items():
            rehearsal = rehearsals[name] = rehearse(plan)
            for count, links in COUNTS.items():
                for link in links:
                    processes = replace(plan.processes, count=count, bandwidth=bandwidth_of(link))
                    given = replace(plan, processes=processes)
                    found[name, count, link] = weigh(given, rehearsal), flops_of(rehearsal)
    divided = next(iter(rehearsals))
    texts = {
        "scaling-arithmetic": runs_table(found),
        "scaling-memory": memory_table(
            {count: found[divided, count, links[0]][0] for count, links in COUNTS.items()}
        ),
        "scaling-servers": servers_table(rehearsals),
    }
    for name, text in texts.items():
        print(text, end="\n\n")
        if options.markdown is not None:
            insert(options.markdown, name, text)


if __name__ == "__main__":
    main()
