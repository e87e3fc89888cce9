"""One run of lit_rlhf's paths on a GPU: are they right there, how fast are they, what do they take.

    python -m benchmarks.gpu --out runs/gpu                          # shapes of 0.5B, up to 8 minutes
    python -m benchmarks.gpu --out runs/gpu7 --size 7b --only machine grpo --budget 600
    python -m benchmarks.gpu --out runs/gpu --device cpu --size tiny # a rehearsal without a GPU
    python -m benchmarks.gpu --out runs/gpu --markdown docs/GPU.md   # after a run: runs nothing, writes the page

Each part is a process of its own with a share of the time, and what it has measured is on disk at once: a crash, or
the end of its time, loses nothing of that. While one works, the next imports. Random weights are drawn once for all
parts. Needs no network and no weights of others. If `baselines/` has a run on the same card and size, what became worse
by over 5 % is said; `--keep` puts this run there. Ends with status 1 where a part failed, a check doesn't hold or
something became worse.
"""

import argparse
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.report import baseline_of, page, read_run, worse_than, write_run
from benchmarks.gpu.result import Result

ROOT = Path(__file__).resolve().parents[2]
SHARES = {
    "machine": 10,
    "same_as_cpu": 40,
    "resume": 16,
    "decoding": 76,
    "grpo": 30,
    "ppo": 25,
    "dpo": 22,
    "reward_model": 12,
    "supervised": 25,
    "nf4": 30,
    "export": 8,
    "waits": 12,
    "precisions": 30,
    "kernels": 40,
    "compiled": 60,
}
"""Seconds of the default budget for each part, those first that say most; what one leaves, later ones have."""
BUDGETS = {"cuda": 460.0, "cpu": 1200.0}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, `deterministic` raises
}


def main(args: Sequence[str] | None = None) -> int:
    """Run, compare, say; returns the exit status."""
    options = _parse(args)
    out: Path = options.out
    if options.markdown:
        options.markdown.write_text(page(read_run(out)), encoding="utf-8")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.json"):
        old.unlink()
    results: dict[str, Result] = {}
    for name, result, seconds in _run_all(options):
        results[name] = result
        write_run(out, results, device=options.device, size=options.size, args=sys.argv[1:])
        print(f"{name}: {'right' if result.sound else 'NOT RIGHT'}, {seconds:.0f} s", flush=True)
        for what, said in result.failures.items():
            print(f"  {what}: {said}", flush=True)
    run = read_run(out)
    before = baseline_of(run, ROOT / "benchmarks/gpu/baselines")
    worse = worse_than(read_run(before), run) if before.is_file() else []
    for line in worse:
        print(f"worse than {before.name}: {line}")
    if options.keep:
        before.write_text((out / "run.json").read_text(encoding="utf-8"), encoding="utf-8")
    print(f"Everything is in {out / 'run.json'}; the page: --out {out} --markdown docs/GPU.md")
    return int(bool(worse) or not all(result.sound for result in results.values()))


def _run_all(options: argparse.Namespace) -> Iterator[tuple[str, Result, float]]:
    """Each part's result, in order; the next part's process has imported everything by then."""
    names = [name for name in SHARES if name in (options.only or SHARES)]
    deadline = time.monotonic() + (options.budget or BUDGETS[options.device])
    with tempfile.TemporaryDirectory(prefix="lit_rlhf_gpu_") as work:
        following: subprocess.Popen[bytes] | None = _start(names[0], options, work)
        # The first import reads everything from a cold disk: all share in what that takes.
        select.select([following.stdout], [], [], (deadline - time.monotonic()) / 2)
        until = time.monotonic()
        second = (deadline - until) / sum(SHARES[name] for name in names)
        for name, after in zip(names, [*names[1:], None], strict=True):
            assert following is not None
            process, following = following, _start(after, options, work) if after else None
            start = time.monotonic()
            until += second * SHARES[name]
            result = _finish(name, process, options.out, until - start)
            yield name, result, time.monotonic() - start


def _start(name: str, options: argparse.Namespace, work: str) -> subprocess.Popen[bytes]:
    arguments = [name, options.device, options.size, str(options.out.resolve()), work]
    with (options.out / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.part", *arguments],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT) + _more_paths()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )


def _more_paths() -> str:
    given = os.environ.get("PYTHONPATH")
    return f"{os.pathsep}{given}" if given else ""


def _finish(name: str, process: subprocess.Popen[bytes], out: Path, seconds: float) -> Result:
    """Let a part work, for as long as it may; what it wrote, and how it ended if it was not by itself."""
    start = time.monotonic()
    select.select([process.stdout], [], [], max(seconds, 0))
    try:
        process.communicate(b"\n", timeout=max(seconds - (time.monotonic() - start), 0.1))
        ended = f"ended with status {process.returncode}" if process.returncode else None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        ended = f"was ended after {seconds:.0f} s, its share of the time (--budget)"
    written = out / f"{name}.json"
    result = Result.read(written) if written.is_file() else Result()
    if ended or not written.is_file():
        log = (out / f"{name}.log").read_text(errors="replace").splitlines()[-3:]
        result.failures[name] = " | ".join([ended or "wrote nothing", *log])
    return result


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="directory of the run")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--size", default="0.5b", choices=["tiny", "0.5b", "7b"])
    parser.add_argument("--only", nargs="+", choices=SHARES, help="some of the parts")
    parser.add_argument("--budget", type=float, help=f"seconds for all parts; default: {BUDGETS}")
    parser.add_argument("--keep", action="store_true", help="make this run the card's baseline")
    parser.add_argument("--markdown", type=Path, help="write the page of the run in --out instead")
    return parser.parse_args(args)


if __name__ == "__main__":
    raise SystemExit(main())
