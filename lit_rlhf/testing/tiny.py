"""`python -m lit_rlhf.testing.tiny DIR` writes a tiny model and data to try any configuration with, in seconds."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_rlhf.errors import FileError
from lit_rlhf.testing.models import write_tiny_model
from lit_rlhf.testing.preferences import (
    tiny_demonstrations,
    tiny_preferences,
    tiny_prompts,
    tiny_rankings,
    to_jsonl,
    write_jsonl,
)


def write_tiny_world(directory: str | Path, *, rows: int = 64, seed: int = 0) -> Path:
    """Write `tiny-model/` and the files that configs/ name: demonstrations, preferences, rankings and prompts.

    Args:
        directory: Where to write; made if it is missing.
        rows: Rows of each file.
        seed: Of weights and data.

    Raises:
        FileError: A file of another content has one of the names; nothing is written then.
    """
    root = Path(directory)
    data: dict[str, Sequence[Mapping[str, object]]] = {
        "demonstrations.jsonl": tiny_demonstrations(rows, seed),
        "preferences.jsonl": tiny_preferences(rows, seed),
        "rankings.jsonl": tiny_rankings(rows, seed),
        "prompts.jsonl": tiny_prompts(rows, seed),
    }
    for path in (root / name for name in data):
        if path.exists() and path.read_bytes() != to_jsonl(data[path.name]).encode():
            raise FileError(
                f"{path} is there already and holds other rows, which would be lost: name another directory."
            )
    write_tiny_model(root / "tiny-model", seed=seed)
    for name, found in data.items():
        write_jsonl(root / name, found)
    return root


def main(args: Sequence[str] | None = None) -> None:
    """Write to the directory given on the command line."""
    parser = argparse.ArgumentParser(
        description="Write a tiny random llama with its tokenizer, and small data sets."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    try:
        root = write_tiny_world(options.directory, seed=options.seed)
    except FileError as error:
        sys.exit(str(error))
    sys.stdout.write("".join(f"{path}\n" for path in sorted(root.iterdir())))


if __name__ == "__main__":
    main()
