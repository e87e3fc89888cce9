"""`--seeds 0 1 2` behind any command that trains: a run for each, in directories of their own, and their spread."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich import get_console

from lit_rlhf.callbacks import ExportModel, MetricsFile
from lit_rlhf.callbacks.run_record import RUN_RECORD, read_starts
from lit_rlhf.cli import training
from lit_rlhf.cli.building import parsed
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.jsonargparse import flat_options
from lit_rlhf.models.cards import RECORD
from lit_rlhf.report.curves import columns, group_by_seed, spreads
from lit_rlhf.report.page import format_cell
from lit_rlhf.report.run_page import report_runs
from lit_rlhf.report.runs import METRICS, read_runs, settled_options
from lit_rlhf.rounds.commands import run_process

_LARGEST = 2**32 - 1  # of Lightning's seed_everything


def run(words: Sequence[str], called: str | None = None) -> None:
    """Do what a command line says: once, or once for each of its `--seeds`; `called` as for `training.run`."""
    if any(word.partition("=")[0] == "--seeds" for word in words):
        train_seeds(words, called)
    else:
        training.run(words, called)


def train_seeds(words: Sequence[str], called: str | None = None) -> None:
    """Train once per seed, one after the other, and say how far the seeds lie apart.

    A seed is that of the module, of its new weights (`init_seed`), of the order of the data, and `seed_everything`.
    Each run is a process with a directory of its own, `<run_dir>/seed-<n>`. Started again, the command leaves out the
    seeds that have finished and goes on with the one that has not. A seed that fails in training doesn't keep the
    others from running.

    Args:
        words: The command line from `fit` on.
        called: As for `training.run`.

    Raises:
        ConfigurationError: Seeds that are none; an option with which the runs would share files; a directory that holds
            something else.
        SystemExit: A run was interrupted (its status), or failed (1).
    """
    seeds, rest = read_seeds(words)
    if rest[0] != "fit":
        raise ConfigurationError(f"--seeds trains, and `{rest[0]}` doesn't: use it with `fit`.")
    text, config = parsed(rest, called)
    directory = _directory(config)
    plans = {seed: directory / f"seed-{seed}" for seed in seeds}
    exports = any(kind is ExportModel for _, kind, _ in flat_options(config))
    for place in plans.values():
        _refuse_other_options(place, text)
    failed = {}
    for number, (seed, place) in enumerate(plans.items(), start=1):
        starts = read_starts(place / RUN_RECORD)
        ended = bool(starts) and starts[-1]["state"] == "finished"
        if ended and (not exports or (place / "export" / RECORD).is_file()):
            _say(f"seed {seed} ({number} of {len(plans)}) has finished before: {place}")
            continue
        _say(f"seed {seed} ({number} of {len(plans)}): {place}")
        status = run_process([*rest, *_options(config, seed, place)])
        starts = read_starts(place / RUN_RECORD)
        if status and (not starts or starts[-1]["state"] != "failed"):
            _say(f"seed {seed} ended with status {status}. The same command goes on from there.")
            raise SystemExit(status)
        if status:
            failed[seed] = starts[-1]["reason"]
    _conclude(directory, plans, failed)
    if failed:
        raise SystemExit(1)


def read_seeds(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds of a command line, and the words without them.

    Raises:
        ConfigurationError: There are none, one comes twice, or one is no seed.

    Example:
        >>> read_seeds(["fit", "-c", "a.yaml", "--seeds", "0", "1", "--run_dir", "b"])
        ([0, 1], ['fit', '-c', 'a.yaml', '--run_dir', 'b'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", nargs="*", action="extend")
    given, rest = parser.parse_known_args(list(words))
    texts = [text for word in given.seeds for text in word.replace(",", " ").split()]
    seeds = [int(text) for text in texts if text.isascii() and text.isdigit()]
    valid = len(seeds) == len(texts) > 0 and len(set(seeds)) == len(seeds)
    if not valid or max(seeds) > _LARGEST:
        raise ConfigurationError(
            f"--seeds {' '.join(given.seeds) or '(nothing)'}: give whole numbers from 0 to {_LARGEST}, each once, as "
            "in --seeds 0 1 2."
        )
    return seeds, rest


def _directory(config: Namespace) -> Path:
    """Where the runs will lie; refuses what they can't share."""
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        raise ConfigurationError(
            "--seeds starts runs of its own, and this is one process of several that a launcher (torchrun, srun) "
            "started: give the launcher one --model.seed and --run_dir at a time."
        )
    if config.ckpt_path is not None:
        raise ConfigurationError(
            f"ckpt_path={config.ckpt_path!r}: --seeds goes on with unfinished runs by itself. Leave --ckpt_path away."
        )
    found = list(flat_options(config))
    if not any(kind is MetricsFile for _, kind, _ in found):
        raise ConfigurationError(
            "--seeds compares runs by what MetricsFile writes: add it to trainer.callbacks."
        )
    for key, kind, options in found:
        if key.startswith("trainer.callbacks") and options.get("dirpath") is not None:
            raise ConfigurationError(
                f"{key}: {kind.__name__}(dirpath={options['dirpath']!r}) is one place for the runs of all seeds. Leave "
                "dirpath away: each run has its own directory in run_dir."
            )
    root = config.trainer.default_root_dir
    if root is None:
        raise ConfigurationError("--seeds needs a directory for its runs: give --run_dir.")
    if (Path(root) / METRICS).is_file():
        raise ConfigurationError(
            f"run_dir={root!r} holds a run of its own ({METRICS}). Give --seeds another --run_dir."
        )
    return Path(root)


def _refuse_other_options(place: Path, text: str) -> None:
    """Refuse a directory whose run has other options: the seeds would be of two experiments."""
    if not (place / METRICS).is_file():
        return
    earlier, wanted = read_runs([place])[0].settled(), settled_options(text)
    differing = [name for name in {**wanted, **earlier} if earlier.get(name) != wanted.get(name)]
    if earlier and differing:
        name = differing[0]
        raise ConfigurationError(
            f"{place} holds a run with {name}={earlier.get(name)!r}, and now it is {wanted.get(name)!r}"
            + (f" ({len(differing)} options differ)" if len(differing) > 1 else "")
            + ". Give another --run_dir, or delete that one."
        )


def _options(config: Namespace, seed: int, place: Path) -> list[str]:
    """What distinguishes the run of a seed."""
    model = config.model.init_args
    having = {
        "seed_everything": config,
        "model.seed": model,
        "model.backbone.init_seed": model.get("backbone"),
        "data.seed": config.data.init_args,
    }
    words = ["--run_dir", str(place)]
    for name, owner in having.items():
        if isinstance(owner, Namespace) and name.rpartition(".")[2] in owner:
            words += [f"--{name}", str(seed)]
    return [*words, "--ckpt_path", "last"] if (place / RUN_RECORD).is_file() else words


def _conclude(directory: Path, plans: dict[int, Path], failed: dict[int, Any]) -> None:
    """Print the spread and write the report."""
    runs = read_runs([place for place in plans.values() if (place / METRICS).is_file()])
    without = {plans[seed] for seed in failed}
    groups = group_by_seed([run for run in runs if run.path not in without])
    for seed, reason in failed.items():
        _say(f"seed {seed} failed: {reason}. The same command tries it again.")
    for group in groups:
        rows = [["", *columns(group)]]
        rows += [[label, *map(format_cell, cells)] for label, cells in spreads(group).items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])] for row in rows)
        _say("\n".join(map("  ".join, lines)))
    path = report_runs([run.path for run in runs], directory / "report.html")
    _say(f"report: {path}")


def _say(text: str) -> None:
    get_console().print(text, markup=False, highlight=False, soft_wrap=True)
