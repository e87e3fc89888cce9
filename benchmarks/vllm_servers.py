"""Training on vLLM servers beside training on the native engine: two processes, two servers, one of them killed.

    LIT_RLHF_VLLM_PYTHON=/path/to/python python -m benchmarks.vllm_servers demo runs/servers
    LIT_RLHF_VLLM_PYTHON=/path/to/python python -m benchmarks.vllm_servers films runs/human_sentiment

GRPO with LoRA under DDP, PPO with whole weights under FSDP2, 20 iterations each, in a world of `vllm_worlds`. With vLLM
one server is killed by SIGKILL while it samples for the seventh, and started again during the eighth. The native engine
runs from several seeds, whose spread is the noise. A policy is judged by the reward model and by a judge that is no
model (gold), on held-out prompts. Runs that are there already are kept.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from benchmarks.markdown import spelled, table
from benchmarks.quiet import quiet_trainer
from benchmarks.vllm_worlds import WORLDS, World
from lit_rlhf.callbacks import MetricsFile, PhaseTimer
from lit_rlhf.demo.stages import complete_heldout
from lit_rlhf.distributed import gather_objects, rank
from lit_rlhf.files import read_lines
from lit_rlhf.modules import PolicyModule
from lit_rlhf.objectives import TruncatedImportance
from lit_rlhf.rollout import AdapterSync, DiskSync, NativeEngine, VLLMServerEngine
from tests.unit.rollout.real_vllm import PLAIN, SAMPLING, RealVLLM, serving_vllm

METHODS = {"GRPO, LoRA": "ddp", "PPO, whole weights": "fsdp2"}
"""Each with the strategy that it runs under."""
NATIVE, SERVERS = "native", "two vLLM servers, one killed"
_GAP = "train/sampling/sampling_logp_difference/mean"


class Job(NamedTuple):
    """A run, as it is handed to its processes."""

    method: str
    world: str
    directory: str
    urls: list[str]
    seed: int
    iterations: int
    run: str
    processes: int


def module_of(job: Job, world: World) -> PolicyModule:
    """A policy to train, on servers or, without any, on the native engine."""
    whole = is_whole(job.method)
    sync = DiskSync() if whole else AdapterSync()
    engine = VLLMServerEngine(job.urls, sync=sync, ask_again=1.0) if job.urls else NativeEngine()
    return world.policy(
        whole,
        engine=engine,
        recompute_logprobs=True,
        importance_correction=TruncatedImportance(),
        seed=job.seed,
    )


def work(job: Job) -> None:
    """One process of a run."""
    torch.set_num_threads(1)
    world, run = WORLDS[job.world](Path(job.directory)), Path(job.run)
    data, module = world.data(job.seed, job.processes), module_of(job, world)
    trainer = quiet_trainer(
        PhaseTimer(),
        MetricsFile(job.run),
        strategy=METHODS[job.method] if job.processes > 1 else "auto",
        devices=job.processes,
        limit_train_batches=job.iterations,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    module.engine = NativeEngine()  # one judge for all
    trainer.limit_val_batches = 1
    rows, kl = complete_heldout(trainer, module, data)
    all_rows = [row for rows in gather_objects(rows) for row in rows]
    if rank() == 0:
        golds = world.gold(all_rows)
        judged = {"reward": fmean(r["score"] for r in all_rows), "gold": fmean(golds), "kl": kl}
        (run / "judged.json").write_text(json.dumps(judged), encoding="utf-8")


def is_whole(method: str) -> bool:
    """Whether a method trains whole weights, not an adapter."""
    return method.startswith("PPO")


def iterations_of(run: Path) -> list[dict[str, Any]]:
    """What was logged of each."""
    file = run / "metrics.jsonl"
    rows = read_lines(file) if file.is_file() else ()
    return [row for row in rows if row["stage"] == "train"]


def start(job: Job, servers: Sequence[RealVLLM] = ()) -> dict[str, Any]:
    """Do a run, killing the first of its servers on the way; what came of it."""
    run = Path(job.run)
    if not (run / "judged.json").is_file():
        run.mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").unlink(missing_ok=True)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc_per_node", str(job.processes), "-m", __spec__.name, "--work"]
        with (run / "log.txt").open("w") as log:
            process = subprocess.Popen([*command, json.dumps(job)], stdout=log, stderr=log)
            if servers:
                _kill_and_start(servers[0], run, process, job.iterations // 3)
            if process.wait() != 0:
                raise SystemExit(f"{job.method}: {(run / 'log.txt').read_text()[-4000:]}")
    judged: dict[str, Any] = json.loads((run / "judged.json").read_text())
    rows = iterations_of(run)
    assert len(rows) == job.iterations
    scores = [row["train/objective/scores"] for row in rows]
    gaps = [row[_GAP] for row in rows]
    return judged | {"scores": fmean(scores[job.iterations // 2 :]), "gap": fmean(gaps)}


def _kill_and_start(
    server: RealVLLM, run: Path, process: "subprocess.Popen[bytes]", killed_at: int
) -> None:
    def wait_for(count: int) -> None:
        while process.poll() is None and len(iterations_of(run)) < count:
            time.sleep(0.2)

    def sampled() -> int:
        return server.log.read_text().count('"POST /v1/completions HTTP/1.1" 200')

    wait_for(killed_at)
    before = sampled()
    while process.poll() is None and sampled() == before:
        time.sleep(0.02)
    server.stop(signal.SIGKILL)
    wait_for(killed_at + 1)
    server.start()
    server.wait()


def shown(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Markdown."""
    names = {
        "gap": "log-prob mismatch",
        "reward": "reward model",
        "gold": "gold",
        "kl": "KL",
        "scores": "score of training, second half",
    }
    rows = []
    for method, engines in found.items():
        for engine, points in engines.items():
            cells = [spelled([point[name] for point in points], ".3g", ".2g") for name in names]
            label = f"{engine}, {len(points)} seed{'s' * (len(points) > 1)}"
            rows.append([method, label, *cells])
    return table(["method", "engine", *names.values()], rows)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_servers", description=__doc__)
    parser.add_argument("world", choices=WORLDS, nargs="?")
    parser.add_argument("directory", type=Path, nargs="?", help="where its models are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--engines", choices=["vllm", "native"], nargs="+", default=["vllm", "native"]
    )
    parser.add_argument(
        "--strategies", choices=METHODS.values(), nargs="+", default=METHODS.values()
    )
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--processes", type=int, choices=[1, 2], default=2, help="train alike")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Job(*json.loads(options.work)))
        return
    if options.directory is None:
        parser.error("name a world and its directory")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else all servers on one core
    directory: Path = options.directory.absolute()
    world = WORLDS[options.world](directory)
    world.prepare()
    methods = {name: each for name, each in METHODS.items() if each in options.strategies}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {method: {} for method in methods}

    def job(method: str, engine: str, urls: list[str], seed: int) -> Job:
        run = directory / "servers" / f"{METHODS[method]}-{engine}-{seed}"
        numbers = (seed, options.iterations, str(run), options.processes)
        return Job(method, options.world, str(directory), urls, *numbers)

    for engine in options.engines:
        for method, strategy in methods.items():
            if engine == "native":
                points = [start(job(method, engine, [], seed)) for seed in options.seeds]
                found[method][NATIVE] = points
            else:
                logs = directory / "servers" / strategy
                logs.mkdir(parents=True, exist_ok=True)
                whole, length = is_whole(method), ("--max-model-len", str(world.max_length))
                flags = (*PLAIN, *length) if whole else (*SAMPLING, *length)
                with serving_vllm(world.initial(whole), logs, 2, flags) as servers:
                    given = job(method, engine, [s.url for s in servers], options.seeds[0])
                    found[method][SERVERS] = [start(given, servers)]
            print(shown(found), flush=True)


if __name__ == "__main__":
    main()
