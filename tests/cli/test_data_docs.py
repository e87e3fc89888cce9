"""docs/DATA.md: every row of its table is read as it says, every example runs, every format is named."""

import json
import re
from pathlib import Path

import pytest

from lit_rlhf.data.recognition import FORMATS, MODULES, read_as, spell
from lit_rlhf.testing.tiny import write_tiny_world

TEXT = (Path(__file__).parents[2] / "docs" / "DATA.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| (.+) \| `(\{.+\})` \| `(.+)` \| `(\w+)` \|$", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("example", "reader", "module"), [line[1:] for line in TABLE], ids=[line[0] for line in TABLE]
)
def test_rows_of_the_table_are_read_as_it_says(example: str, reader: str, module: str) -> None:
    reading = read_as(json.loads(f"[{example}]"), "the example", None, None)
    assert (spell(reading.format), MODULES[reading.kind]) == (reader, module)


def test_the_table_names_every_format() -> None:
    named = {reader.partition("(")[0] for _, _, reader, _ in TABLE}
    assert named == {kind.__name__ for kind in FORMATS}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_world(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/DATA.md", "exec"), {})
