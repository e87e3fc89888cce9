"""One run of lit_rlhf's paths on a GPU: are they right there, how fast are they, what do they take.

    python -m benchmarks.gpu --out runs/gpu                          # shapes of 0.5B, under 4 minutes on an H100
    python -m benchmarks.gpu --out runs/gpu7 --size 7b --only machine grpo --budget 600
    python -m benchmarks.gpu --out runs/gpu --device cpu --size tiny # a rehearsal without a GPU
    python -m benchmarks.gpu --out runs/gpu --markdown docs/GPU.md   # after a run: runs nothing, writes the page

Each part is a process of its own with a limit of time, and its JSON is written before the next begins: a crash loses
that part alone. While one works, the next imports. Parts that the time is not enough for are named. Needs no network
and no weights. If `baselines/` has a run on the same card and size, what became worse by over 5 % is said; `--keep`
puts this run there. Ends with status 1 where a part failed, a check doesn't hold or something became worse.
"""

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.report import baseline_of, page, read_run, worse_than, write_run
from benchmarks.gpu.result import Result

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {
    "machine": 30,
    "same_as_cpu": 60,
    "resume": 40,
    "decoding": 60,
    "grpo": 60,
    "ppo": 45,
    "dpo": 45,
    "reward_model": 30,
    "supervised": 45,
    "nf4": 60,
    "export": 40,
    "precisions": 60,
    "kernels": 60,
    "compiled": 90,
}
"""Seconds that each part may take on a GPU once it has imported what it needs; those first that say most."""
SLOWER = 4
"""By how much a larger model, or a rehearsal on CPU, may take longer."""
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
    names = [name for name in LIMITS if name in (options.only or LIMITS)]
    deadline = time.monotonic() + options.budget
    following = _start(names[0], options) if names else None
    for name, after in zip(names, [*names[1:], None], strict=True):
        assert following is not None
        process, following = following, _start(after, options) if after else None
        start = time.monotonic()
        left = deadline - start
        result = _finish(name, process, options, left)
        yield name, result, time.monotonic() - start


def _start(name: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    arguments = [name, options.device, options.size, str(options.out.resolve())]
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


def _finish(
    name: str, process: subprocess.Popen[bytes], options: argparse.Namespace, left: float
) -> Result:
    """Let a part work, for as long as it may; what it wrote, or how it ended without writing."""
    slow = options.size == "7b" or options.device == "cpu"
    limit = LIMITS[name] * (SLOWER if slow else 1)
    written, start = options.out / f"{name}.json", time.monotonic()
    select.select([process.stdout], [], [], max(left, 0))
    left -= time.monotonic() - start
    if left < 5:
        process.kill()
        process.wait()
        return Result(failures={name: "left out: the time was up (--budget)"})
    try:
        process.communicate(b"\n", timeout=min(limit, left))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return Result(failures={name: f"took more than {min(limit, left):.0f} s, and was ended"})
    if written.is_file():
        return Result.read(written)
    tail = " | ".join((options.out / f"{name}.log").read_text(errors="replace").splitlines()[-3:])
    return Result(failures={name: f"ended with status {process.returncode}: {tail}"})


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="directory of the run")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--size", default="0.5b", choices=["tiny", "0.5b", "7b"])
    parser.add_argument("--only", nargs="+", choices=LIMITS, help="some of the parts")
    parser.add_argument("--budget", type=float, default=230.0, help="seconds for all parts")
    parser.add_argument("--keep", action="store_true", help="make this run the card's baseline")
    parser.add_argument("--markdown", type=Path, help="write the page of the run in --out instead")
    return parser.parse_args(args)


if __name__ == "__main__":
    raise SystemExit(main())
