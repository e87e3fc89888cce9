"""How far greedy completions fall short of the likeliest tokens, judged by the same model in float32.

Two engines in bfloat16 part at the first near tie, after which their texts can't be compared; but at every position
each must have taken about the likeliest token, given what it wrote before.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.processes import report
from benchmarks.workloads.generation import read_prompts


@torch.inference_mode()
def regrets(
    model: torch.nn.Module, prompts: list[list[int]], completions: list[list[int]]
) -> torch.Tensor:
    """Nats for each token of all completions: log-prob of the likeliest token less that of the one taken."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = (
            model(input_ids=torch.tensor([prompt + completion]))
            .logits[0, len(prompt) - 1 : -1]
            .float()
        )
        found.append(logits.amax(-1) - logits.gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return torch.cat(found)


def main() -> None:
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    model = AutoModelForCausalLM.from_pretrained(told["model"], dtype=torch.float32).eval()
    completions = told["completions"]
    found = regrets(model, read_prompts(told["data"], len(completions)), completions)
    report({"mean": float(found.mean()), "worst": float(found.max())})


if __name__ == "__main__":
    main()
