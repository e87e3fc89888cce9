"""What writing to disk needs in every layer."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file or, after a rename, a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
