"""One directory for a run whichever logger it has; metrics as JSON on standard output."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich import reconfigure

from lit_rlhf.cli import main
from lit_rlhf.testing.tiny import write_tiny_world

TINY = ["dpo", "--model", "data/tiny-model", "--data", "data/preferences.jsonl"]
TINY += ["-c", "overlays/tiny"]
LOGGER = '''
from pathlib import Path

from lightning.pytorch.loggers import Logger


class Notes(Logger):
    """Writes where W&B's logger does by default, and has no directory that Lightning knows."""

    def __init__(self, save_dir: str = "./notes", named: str | None = None):
        super().__init__()
        self.place = Path(save_dir)

    name, version = "notes", 0

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        self.place.mkdir(parents=True, exist_ok=True)
        with (self.place / "notes.txt").open("a") as file:
            file.write(f"{metrics}")
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny_world(tmp_path_factory.mktemp("world") / "data").parent
    (root / "notes_logger.py").write_text(LOGGER)
    return root


@pytest.fixture(autouse=True)
def console() -> Iterator[None]:
    """As it was."""
    yield
    reconfigure()


@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_a_logger_writes_into_the_directory_of_the_run(
    given: str | None, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    before = set(Path().iterdir())
    words = ["--trainer.logger", "notes_logger.Notes"]
    words += ["--trainer.logger.save_dir", given] if given else []
    run = Path(f"run-{given}")
    main([*TINY, "--run_dir", str(run), *words])
    place = Path(given) if given else run / "notes"
    assert (place / "notes.txt").is_file()
    new = {path.name for path in set(Path().iterdir()) - before}
    assert new - {"__pycache__"} == {run.name, *([given] if given else [])}
    assert yaml.safe_load((run / "config.yaml").read_text())["run_dir"] == str(run)


def test_metrics_as_json_on_standard_output(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    main([*TINY, "--run_dir", "json", "--log_json"])
    said = capfd.readouterr()
    assert said.out == Path("json/metrics.jsonl").read_text()
    assert all(json.loads(line)["iteration"] for line in said.out.splitlines())
    assert "Done after 2 iterations" in said.err


def test_without_metrics_file_the_option_adds_one(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    main([*TINY, "--run_dir", "bare", "--trainer.callbacks", "[]", "--log_json"])
    assert capfd.readouterr().out == Path("bare/metrics.jsonl").read_text() != ""
