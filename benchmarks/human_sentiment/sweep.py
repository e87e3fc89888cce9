"""The runs of `frontier.py`: a method and a beta each, as processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from benchmarks.human_sentiment import policy_pairs

HERE = Path(__file__).parent


class Method(NamedTuple):
    """A curve of the figure.

    Attributes:
        label: In the figure.
        colour: Of the curve.
        files: Configurations, the later ones on top.
        option: What of the model sets the strength of the regularization.
        betas: Its values, from weak to strong.
        margin: Another option, and its ratio to beta.
    """

    label: str
    colour: str
    files: tuple[str, ...]
    option: str
    betas: tuple[float, ...] = (0.05, 0.3, 1.5)
    margin: tuple[str, float] | None = None


_LOSS, _KL = "loss.init_args", "kl.init_args.coef"
METHODS = {
    "ppo": Method("PPO", "#b5342f", ("policy", "ppo"), _KL),
    "dpo": Method("DPO", "#2f6db5", ("pairs", "dpo"), f"{_LOSS}.beta"),
    "rloo": Method("RLOO", "#e06c9f", ("policy", "rloo"), _KL),
    "ipo": Method("IPO", "#2c8a57", ("pairs", "ipo"), f"{_LOSS}.tau"),
    "grpo": Method("GRPO", "#8a5a2b", ("policy", "grpo"), _KL),
    "kto": Method("KTO", "#d97724", ("pairs", "kto"), f"{_LOSS}.beta"),
    "online_dpo": Method("online DPO", "#1fa3b8", ("policy", "online_dpo"), f"{_LOSS}.beta"),
    "simpo": Method(
        "SimPO",
        "#8458b3",
        ("pairs", "simpo"),
        f"{_LOSS}.beta",
        (1.0, 3.0, 10.0),
        (f"{_LOSS}.gamma", 0.5),
    ),
}


def command(
    name: str, beta: float, directory: Path, root: Path, dtype: str, steps: int | None
) -> list[str]:
    """The command line of one run; its configuration, with paths under the root, is written to its directory."""
    method = METHODS[name]
    words = [sys.executable, "-m", "lit_rlhf", "fit"]
    for file in method.files:
        text = (HERE / f"{file}.yaml").read_text(encoding="utf-8")
        for place in ("runs/human_sentiment/direct", "runs/human_sentiment/policy"):
            text = text.replace(place, str(directory))
        copy = directory / f"{file}.yaml"
        copy.write_text(text.replace("runs/human_sentiment", str(root)), encoding="utf-8")
        words += ["-c", str(copy)]
    options = {method.option: beta, "backbone.dtype": dtype}
    if method.margin is not None:
        options[method.margin[0]] = beta * method.margin[1]
    words += [f"--model.init_args.{option}={value}" for option, value in options.items()]
    return words if steps is None else [*words, f"--trainer.limit_train_batches={steps}"]


def place_of(name: str, beta: float) -> Path:
    """The directory of a run, relative to the root."""
    return Path("frontier") / f"{name}-{beta:g}"


def train(name: str, beta: float, root: Path, dtype: str, steps: int | None) -> None:
    """Run it, unless it was; `seconds.txt` is there once it is done.

    Raises:
        RuntimeError: It failed.
    """
    directory = root / place_of(name, beta)
    done = directory / "seconds.txt"
    if done.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("checkpoints/*"):  # of a run that was broken off
        old.unlink()
    start = time.perf_counter()
    with (directory / "log.txt").open("w") as log:
        words = command(name, beta, directory, root, dtype, steps)
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(
            words, stdout=log, stderr=subprocess.STDOUT, env=one_thread, check=False
        ).returncode
    if code != 0:
        raise RuntimeError(
            f"{name} at beta {beta:g} ended with code {code}; see {directory / 'log.txt'}"
        )
    done.write_text(f"{time.perf_counter() - start:.1f}\n")
    print(f"{directory}: {done.read_text().strip()} s", flush=True)


def interleaved(runs: Mapping[str, Sequence[float]]) -> list[tuple[str, float]]:
    """The first beta of each method, then the second, ...: a sweep that is broken off has something of each.

    Example:
        >>> interleaved({"ppo": [0.1, 0.2], "dpo": [0.3]})
        [('ppo', 0.1), ('dpo', 0.3), ('ppo', 0.2)]
    """
    rounds = zip_longest(*([(name, beta) for beta in betas] for name, betas in runs.items()))
    return [run for each in rounds for run in each if run is not None]


def train_all(
    runs: Mapping[str, Sequence[float]], root: Path, dtype: str, steps: int | None, jobs: int
) -> None:
    """Train what is missing, several runs at a time; all are tried before the failed ones are named."""
    if not (root / policy_pairs.FILE).exists():
        policy_pairs.main(["--root", str(root), "--dtype", dtype])
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [
            pool.submit(train, name, beta, root, dtype, steps) for name, beta in interleaved(runs)
        ]
        errors = [error for error in (run.exception() for run in waiting) if error is not None]
    if errors:
        raise SystemExit("\n".join(map(str, errors)))
