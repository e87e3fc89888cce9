"""The README's examples, run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.testing import tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TINY = str(ROOT / "configs" / "overlays" / "tiny.yaml")


def blocks(language: str, section: str) -> list[str]:
    """Fenced blocks of a language in a section."""
    body = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", body, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as far as the examples go: configs/ beside data/ and runs/."""
    root = tmp_path_factory.mktemp("readme")
    (root / "configs").symlink_to(ROOT / "configs")
    return root


def test_python_example(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    (code,) = blocks("python", "Python")
    exec(compile(code, "README.md", "exec"), {})
    assert "'response'" in capsys.readouterr().out


def test_commands(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    (script,) = blocks("bash", "Command line")
    lines = [line.split("  #")[0].strip() for line in script.splitlines()]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        if words[0] == "python":
            assert words[1:3] == ["-m", "lit_rlhf.testing.tiny"]
            tiny.main(words[3:])
        else:
            main(words[1:])
    assert "response" in capsys.readouterr().out


def test_yaml_example(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    if not Path("runs/reward/lora/export").is_dir():
        pytest.skip("needs the reward model that test_commands trains")
    (text,) = blocks("yaml", "YAML")
    config = yaml.safe_load(text)
    config["trainer"] = {
        "max_epochs": 1,
        "limit_train_batches": 1,
        "accelerator": "cpu",
        "logger": False,
    }
    config["trainer"]["enable_checkpointing"] = False
    Path("example.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", "example.yaml"])


def test_own_algorithm_by_class_path(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module outside the package, its own option included, without touching any other file."""
    monkeypatch.chdir(workplace)
    (code,) = blocks("python", "Your own algorithm")
    assert len(code.splitlines()) < 40
    Path("mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(workplace))
    if not Path("runs/reward/lora/export").is_dir():
        pytest.skip("needs the reward model that test_commands trains")
    (script,) = blocks("bash", "Your own algorithm")
    for command in script.splitlines():
        main(shlex.split(command)[1:])
