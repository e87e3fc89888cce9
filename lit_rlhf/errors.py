"""Errors that are meant for the person who runs the library (layer L0).

Each message says what was wrong, where (file, row, column, option, with the values seen) and the way out. The command
line prints these without a traceback.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


class LitRLHFError(ValueError):
    """Base of all errors that a user can mend."""


class ConfigurationError(LitRLHFError):
    """An option, or a combination of options, that would be ignored or would train something else than asked."""


class DataError(LitRLHFError):
    """A row, a column or a file that can't be used as it stands."""


class CheckpointError(LitRLHFError):
    """A checkpoint, an export or an adapter that is torn, incomplete or made for something else."""


class TrainingDivergedError(LitRLHFError):
    """Weights or losses have left the range of numbers, and going on would spend time on nothing."""


class FileError(LitRLHFError):
    """A file or directory that can't be written: no room, no permission, or something else in its place."""


class ServiceError(LitRLHFError):
    """A request to a server that failed, its retries included; other requests may succeed."""


def did_you_mean(names: Iterable[str]) -> str:
    """A question for names, with a space before it; empty where there is none."""
    said = " or ".join(names)
    return f" Did you mean {said}?" if said else ""


def near(
    word: str,
    names: Iterable[str],
    most: int = 2,
    cutoff: float = 0.6,
    form: Callable[[str], str] = str,
) -> str:
    """`did_you_mean` of the names that are near a word.

    Args:
        word: What isn't known.
        names: What is.
        most: How many are named.
        cutoff: How near they must be, from 0 to 1; see `difflib.get_close_matches`.
        form: How a name is written.
    """
    return did_you_mean(map(form, get_close_matches(word, list(names), n=most, cutoff=cutoff)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: torch's error has a kind of its own, a driver's and a compiler's about it have none."""
    said = str(error).lower()
    short = "out of memory" in said or "can't allocate memory" in said
    # By its name, for errors are told where torch isn't loaded.
    return short or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
