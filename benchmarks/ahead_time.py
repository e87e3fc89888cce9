"""What sampling a step ahead saves: a vLLM server on the first core, a policy on the second, by turns.

    LIT_RLHF_VLLM_PYTHON=/path/to/python python -m benchmarks.ahead_time

A llama of 6 layers and width 256 in float32 with random weights, GRPO with LoRA on 4 prompts with 4 samples of up to 64
tokens. Each turn trains it once with `staleness: 0` and once with 1, by the same server. Prints the median iteration of
each, without the first two, the wait for samples in it, and the load of the machine.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from torch.optim import AdamW

from benchmarks.markdown import table
from benchmarks.quiet import History, quiet_trainer
from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.data import PromptDataModule, RowsSource
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import GRPOPolicyModule
from lit_rlhf.objectives import TruncatedImportance
from lit_rlhf.rewards import LengthReward
from lit_rlhf.rollout import Ahead, Sampling, VLLMServerEngine
from lit_rlhf.testing import write_tiny_model
from tests.unit.rollout.real_vllm import serving_vllm

_PROMPTS, _SKIPPED = 4, 2


def train(model: Path, url: str, staleness: int, iterations: int) -> tuple[float, float]:
    """Median seconds of an iteration, and of the wait in it."""
    module = GRPOPolicyModule(
        ModelSpec(name=str(model), lora=LoraSpec(rank=8)),
        LengthReward(),
        engine=Ahead(VLLMServerEngine(url), staleness),
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
        num_samples=4,
        sampling=Sampling(max_new_tokens=64),
        optimizer=partial(AdamW, lr=1e-3),
    )
    rows = [{"prompt": f"the {number}th film was "} for number in range(iterations * _PROMPTS)]
    data = PromptDataModule(
        RowsSource(rows), tokenizer=str(model), batch_size=_PROMPTS, cache_dir=str(model / "cache")
    )
    history = History()
    quiet_trainer(PhaseTimer(), history).fit(module, datamodule=data)
    iteration, wait = (history.of(f"train/time/{name}") for name in ("iteration", "rollout"))
    return median(iteration[_SKIPPED:]), median(wait[_SKIPPED:])


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead_time", description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    first, second, *_ = sorted(os.sched_getaffinity(0))
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
        heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
        model = write_tiny_model(Path(folder, "model"), **shape, **heads)
        os.sched_setaffinity(0, {first})  # which the server inherits
        with serving_vllm(model, Path(folder)) as (server,):
            os.sched_setaffinity(0, {second})
            heads = ["staleness 0, s", "of it waited", "staleness 1, s", "of it waited"]
            print(table([*heads, "faster by", "load"], []))
            ratios = []
            for _ in range(options.turns):
                (on, wait), (ahead, less) = (
                    train(model, server.url, staleness, options.iterations) for staleness in (0, 1)
                )
                ratios.append(on / ahead)
                load = os.getloadavg()[0]
                cells = (f"{x:.2f}" for x in (on, wait, ahead, less, ratios[-1], load))
                print(f"| {' | '.join(cells)} |", flush=True)
            print(f"faster by {fmean(ratios):.2f} on average")


if __name__ == "__main__":
    main()
