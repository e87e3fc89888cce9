"""`python -m lit_rlhf.testing.tiny DIR` writes a tiny model and data to try any configuration with, in seconds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.testing.models import write_tiny_model
from lit_rlhf.testing.preferences import (
    tiny_demonstrations,
    tiny_preferences,
    tiny_prompts,
    tiny_rankings,
    write_jsonl,
)


def write_tiny_world(directory: str | Path, *, rows: int = 64, seed: int = 0) -> Path:
    """Write `tiny-model/` and the files that configs/ name: demonstrations, preferences, rankings and prompts.

    Args:
        directory: Where to write; made if it is missing.
        rows: Rows of each file.
        seed: Of weights and data.
    """
    root = Path(directory)
    write_tiny_model(root / "tiny-model", seed=seed)
    write_jsonl(root / "demonstrations.jsonl", tiny_demonstrations(rows, seed))
    write_jsonl(root / "preferences.jsonl", tiny_preferences(rows, seed))
    write_jsonl(root / "rankings.jsonl", tiny_rankings(rows, seed))
    write_jsonl(root / "prompts.jsonl", tiny_prompts(rows, seed))
    return root


def main(args: Sequence[str] | None = None) -> None:
    """Write to the directory given on the command line."""
    parser = argparse.ArgumentParser(
        description="Write a tiny random llama with its tokenizer, and small data sets."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    root = write_tiny_world(options.directory, seed=options.seed)
    sys.stdout.write("".join(f"{path}\n" for path in sorted(root.iterdir())))


if __name__ == "__main__":
    main()
