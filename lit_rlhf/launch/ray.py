"""`python -m lit_rlhf.launch.ray fit -c ... --workers 4`: a training command on the workers of a Ray cluster."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.launch.cluster import launch


def main(words: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_rlhf.launch.ray",
        usage="%(prog)s fit -c CONFIG [options of lit-rlhf fit] --workers N",
        description=(launch.__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, required=True, help="how many")
    parser.add_argument("--failures", type=int, default=3, help="times that all may start anew")
    parser.add_argument(
        "--storage", type=Path, default=Path("runs/ray"), help="Ray's notes of the run"
    )
    ours, theirs = parser.parse_known_args(words)
    try:
        launch(theirs, ours.workers, ours.failures, ours.storage)
    except LitRLHFError as error:
        print(f"\nlit_rlhf.launch.ray: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
