"""The libraries that only annotating needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from lit_rlhf.errors import ConfigurationError


@contextmanager
def importing_extra() -> Iterator[None]:
    """Say which extra to install where an import within finds nothing.

    Raises:
        ConfigurationError: A library of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Annotating needs {error.name}, which isn't installed: pip install 'lit-rlhf[annotate]'."
        ) from error
