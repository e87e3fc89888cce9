"""Code typed into a notebook or a prompt: it has no file, and counts as what its functions hold."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lit_rlhf.data import keys

TYPED = """
import math
from lit_rlhf.data import Format, Record

SEPARATORS = [" "]

def helper(text):
    'What it does.'
    return text + SEPARATORS[0]

class Base(Format):
    ending = "."

    def shorten(self, text):
        return text[: math.ceil(9.5)] + self.ending

class Mine(Base):
    def __init__(self, column):
        super().__init__()
        self.column = column

    def __call__(self, row, mark="!"):
        known = row["source"] in {"web", "books", "people", "code"}
        change = lambda text: text.strip()
        return [Record(change(helper(row[self.column])) + mark * known, (self.shorten(row["a"]),))]
"""
SAME = {
    "comment": ("return text + SEP", "# by the way\n    return text + SEP"),
    "docstring": ("What it does.", "What it really does."),
    "unused": ("SEPARATORS = ", "OTHER = 3\nSEPARATORS = "),
}
OTHER = {
    "helper": ("return text + SEP", "return text + 2 * SEP"),
    "list": ('[" "]', '["_"]'),
    "attribute": ('ending = "."', 'ending = "?"'),
    "base": ("9.5", "8.5"),
    "lambda": ("text.strip()", "text.lstrip()"),
    "default": ('mark="!"', 'mark="?"'),
    "constant": ('"people"', '"persons"'),
    "name": ("math.ceil", "math.floor"),
}
SCRIPT = """
import json, sys
from lit_rlhf.data.keys import content_key
for name, text in json.loads(sys.stdin.read()).items():
    exec(text, globals())
    print(name, content_key({"format": Mine("a"), "function": helper}), sep=",")
"""


def typed_keys(seed: int) -> dict[str, str]:
    """The key of each variant, in a process whose `__main__` has no file."""
    variants = {"": TYPED} | {n: TYPED.replace(*change) for n, change in (SAME | OTHER).items()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(variants),
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(",") for line in done.stdout.splitlines())


@pytest.mark.walk
def test_typed_code_counts_as_what_its_functions_hold() -> None:
    found = typed_keys(1)
    assert typed_keys(2) == found  # the order of sets differs
    assert {name for name, key in found.items() if key == found[""]} == {"", *SAME}
    assert len(set(found.values())) == 1 + len(OTHER)


def test_packages_are_installed_wherever_a_system_keeps_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = ModuleType("kept_elsewhere")
    package.__file__ = str(tmp_path / "dist-packages/kept_elsewhere/__init__.py")
    monkeypatch.setitem(sys.modules, "kept_elsewhere", package)
    (tmp_path / "mine_that_imports.py").write_text("import kept_elsewhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert keys.code_digest("mine_that_imports")


def test_compiled_modules_count_as_their_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / f"compiled{keys.EXTENSION_SUFFIXES[0]}"
    module = ModuleType("compiled_by_me")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "compiled_by_me", module)
    digests = set()
    for content in (b"\xff one", b"\xff two"):
        file.write_bytes(content)
        digests.add(keys.code_digest("compiled_by_me"))
    assert len(digests) == 2
