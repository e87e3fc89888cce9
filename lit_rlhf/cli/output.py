"""Rows to a file or to standard output."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import whole_file


def print_text(text: str) -> None:
    """Write to standard output, as it stands."""
    sys.stdout.write(text)


def write_rows(rows: Iterable[Mapping[str, Any]], output: Path | None) -> None:
    """Write rows as JSONL to a file, or to standard output where there is none."""
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
        return
    if not output.name:
        raise ConfigurationError(
            f"--output {str(output)!r} names no file: give one, or leave it out."
        )
    with whole_file(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
