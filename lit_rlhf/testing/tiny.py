"""`python -m lit_rlhf.testing.tiny DIR` writes a tiny llama and its tokenizer, as `from_pretrained` reads them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.testing.models import write_tiny_model


def main(args: Sequence[str] | None = None) -> None:
    """Write a tiny model to the directory given on the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny random llama and its tokenizer, for tests and examples.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    sys.stdout.write(f"{write_tiny_model(options.directory, seed=options.seed)}\n")


if __name__ == "__main__":
    main()
