"""A run for each seed: which are left out, what they come to, what is refused before any starts."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from statistics import fmean, stdev

import pytest
from safetensors.torch import load_file
from scipy import stats

from lit_rlhf.cli import main
from lit_rlhf.cli.seeds import read_seeds
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.testing.tiny import write_tiny_world
from tests import warm

TINY = ["dpo", "--model", "data/tiny-model", "--data", "data/preferences.jsonl", "-c"]
TINY += ["overlays/tiny", "--trainer.accelerator", "cpu"]
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs as `--seeds` makes them, within this process."""
    root = write_tiny_world(tmp_path_factory.mktemp("world") / "data").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed in SEEDS:
            names = ("--seed_everything", "--model.seed", "--data.seed")
            options = [word for name in names for word in (name, str(seed))]
            options += ["--model.backbone.init_seed", str(seed)]
            main([*TINY, "--run_dir", f"r/seed-{seed}", *options])
    return root


@pytest.fixture
def world(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def ends(metric: str) -> list[float]:
    """The last value of each seed's curve, which is the last tenth of two."""
    rows = [Path(f"r/seed-{seed}/metrics.jsonl").read_text().splitlines() for seed in SEEDS]
    return [[row[metric] for row in map(json.loads, lines) if metric in row][-1] for lines in rows]


def test_finished_seeds_are_left_out_and_compared(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("r").rglob("*.jsonl")}
    main([*TINY, "--run_dir", "r", "--seeds", "0", "1", "2"])
    assert {path: path.stat().st_mtime_ns for path in Path("r").rglob("*.jsonl")} == before
    said = capfd.readouterr().out
    assert said.count("has finished before") == 3
    values = ends("val/loss")
    half = stats.t.ppf(0.975, 2) * stdev(values) / 3**0.5
    wanted = [f"{number:.4g}" for number in (fmean(values), half, stdev(values), *values)]
    line = next(line for line in said.splitlines() if line.startswith("loss, validation"))
    found = line.removeprefix("loss, validation").split()
    # As printed, so by one of the fourth digit where a value lies between two.
    assert [float(x) for x in found] == pytest.approx([float(x) for x in wanted], rel=1e-3)
    assert len(set(values)) == 3
    page = Path("r/report.html").read_text()
    assert ", 3 seeds" in page and "Seed by seed: " in page


@pytest.mark.parametrize("given", ["", "0 0", "x", "1.5", "-1", "5000000000", "0,0", "[0,1]"])
def test_what_is_no_list_of_seeds(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--seeds .*: give whole numbers from 0"):
        read_seeds(["fit", "--seeds", *given.split(), "--run_dir", "r"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt_path", "last"], "goes on with unfinished runs by itself"),
        (["--model.loss.beta", "0.7"], r"seed-0 holds a run with model.loss.beta=0.1, and now"),
        (["--model.loss.bta", "1"], "bta"),
        (["--trainer.callbacks.dirpath", "here"], "is one place for the runs of all seeds"),
        (["--trainer.callbacks", "[]"], "MetricsFile"),
        (["--run_dir", "r/seed-0"], "holds a run of its own"),
        (["--run_dir", "null"], "give --run_dir"),
    ],
)
def test_what_is_refused_before_a_run_starts(
    words: list[str], said: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path("r").iterdir())
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--run_dir", "r", "--seeds", "0", "7", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.rpartition("lit-rlhf dpo: ")[2]
    assert re.search(said, error) and error.count("\n") <= 2
    assert set(Path("r").iterdir()) == before


def test_processes_of_a_launcher_are_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main([*TINY, "--run_dir", "r", "--seeds", "0"])


@pytest.mark.slow
def test_a_killed_seed_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGTERM ends the run that is going on, which saves; the same command goes on, to the bits of a whole run."""
    write_tiny_world(tmp_path / "data")
    longer = ["--trainer.limit_train_batches", "12"]
    command = [warm.python(), "-m", "lit_rlhf", *TINY, *longer, "--seeds", "3", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    whole = [*command, "--run_dir", "whole"]
    subprocess.run(whole, cwd=tmp_path, env=environment, check=True)
    torn = [*command, "--run_dir", "torn"]
    child = subprocess.Popen(torn, cwd=tmp_path, env=environment)
    lines = tmp_path / "torn/seed-4/metrics.jsonl"
    while child.poll() is None and not lines.exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 143
    done = subprocess.run(
        torn, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert "seed 3 (1 of 2) has finished before" in done.stdout
    for seed in (3, 4):
        name = f"seed-{seed}/export/model.safetensors"
        first, second = (load_file(tmp_path / run / name) for run in ("whole", "torn"))
        assert all(first[key].equal(second[key]) for key in first)
