"""What type checkers make of the public names: each has a type of its own, a misspelled one is an error."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import lit_rlhf
from tests.public import public_names

ROOT = Path(__file__).parents[2]
FOLDERS = {path.parent.name for path in (ROOT / "lit_rlhf").glob("*/__init__.py")}
PACKAGES = ["lit_rlhf", *sorted(f"lit_rlhf.{folder}" for folder in FOLDERS - {"internals"})]


def reveal(names: Mapping[str, list[str]]) -> str:
    """A program that asks for the type of each name, one a line."""
    lines = [f"import {package}" for package in names]
    lines += [f"reveal_type({package}.{name})" for package in names for name in names[package]]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """Every public name, then a misspelled one per package: the file, how many names, where the misspelled begin."""
    names = {package: public_names(package) for package in PACKAGES}
    right = reveal(names)
    wrong = "".join(f"{package}.{names[package][0]}x\n" for package in PACKAGES)
    file = tmp_path_factory.mktemp("types") / "program.py"
    file.write_text(right + wrong, encoding="utf-8")
    return file, sum(map(len, names.values())), right.count("\n")


def test_names_at_run_time_are_those_of_type_checkers() -> None:
    assert ["__version__", *public_names("lit_rlhf")] == lit_rlhf.__all__
    assert all(getattr(lit_rlhf, name) is not None for name in lit_rlhf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'PPOModule'"):
        lit_rlhf.PPOModule  # type: ignore[attr-defined]  # noqa: B018


def test_mypy_knows_every_name(program: tuple[Path, int, int]) -> None:
    file, count, right = program
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    revealed = re.findall(r"Revealed type is \"(.*)\"", done.stdout)
    errors = [int(n) for n in re.findall(r"program\.py:(\d+): error", done.stdout)]
    assert len(revealed) == count
    assert "Any" not in revealed
    assert errors == [right + 1 + i for i in range(len(PACKAGES))], done.stdout[-2000:]


@pytest.mark.walk
def test_pyright_knows_every_name(program: tuple[Path, int, int]) -> None:
    file, count, right = program
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, file],
        cwd=file.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(file.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [d["message"] for d in said if d["severity"] == "information"]
    errors = [d["range"]["start"]["line"] for d in said if d["severity"] == "error"]
    assert len(revealed) == count
    assert not [text for text in revealed if re.search(r'is "(Any|Unknown)"', text)]
    assert errors == [right + i for i in range(len(PACKAGES))], errors
