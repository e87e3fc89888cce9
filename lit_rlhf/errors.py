"""Errors that are meant for the person who runs the library (layer L0).

Each message says what was wrong, where (file, row, column, option, with the values seen) and the way out. The command
line prints these without a traceback.
"""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: torch's error has a kind of its own, a driver's and a compiler's about it have none."""
    said = str(error).lower()
    short = "out of memory" in said or "can't allocate memory" in said
    return short or isinstance(error, MemoryError)
