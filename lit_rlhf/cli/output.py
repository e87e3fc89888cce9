"""Rows to a file or to standard output."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.files import whole_file, write_text

if TYPE_CHECKING:  # commands that need no model import no torch
    from lit_rlhf.data import Source


def print_text(text: str) -> None:
    """Write to standard output, as it stands."""
    sys.stdout.write(text)


def write_new(texts: Mapping[Path, str]) -> None:
    """Write files that people change afterwards.

    Raises:
        ConfigurationError: One is there with other words; none is written then.
    """
    for file, text in texts.items():
        refuse_directory(file)
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise ConfigurationError(
                f"{file} is there already, and may hold changes of yours. Name another file by --output, or remove it."
            )
    for file, text in texts.items():
        write_text(file, text)


def refuse_directory(output: Path | None) -> None:
    """Before any work: refuse an output that is no file's path."""
    if output is not None and (not output.name or output.is_dir()):
        raise ConfigurationError(
            f"--output {str(output)!r} names no file, but a directory: name a file in it."
        )


def writable_rows(source: "Source") -> list[dict[str, Any]]:
    """The rows of a source, all of which `write_rows` can write again.

    Raises:
        DataError: A column can't be written, such as one of bytes.
    """
    rows = [dict(row) for row in source.load()]
    for number, row in enumerate(rows):
        for name, value in row.items():
            try:
                json.dumps(value, default=_text)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{source.locate(number)}: column {name!r} can't be written as JSONL: {error}. Leave it out of the "
                    "data."
                ) from error
    return rows


def write_rows(rows: Iterable[Mapping[str, Any]], output: Path | None) -> None:
    """Write rows as JSONL to a file, or to standard output where there is none; dates and the like as text."""
    lines = (json.dumps(dict(row), ensure_ascii=False, default=_text) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
        return
    refuse_directory(output)
    with (
        whole_file(output) as temporary,
        # Half a character, which no encoding writes, becomes the escape that JSON has for it.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(lines)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        raise TypeError("it holds bytes")
    return str(value)
