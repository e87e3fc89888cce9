"""Libraries of extras, which only a part of this one needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from lit_rlhf.errors import ConfigurationError


@contextmanager
def importing_extra(extra: str, user: str, otherwise: str = "") -> Iterator[None]:
    """Say which extra to install where an import within finds nothing.

    Args:
        extra: Its name in pyproject.toml.
        user: What needs it, as the beginning of a sentence.
        otherwise: How to do without it, as a sentence.

    Raises:
        ConfigurationError: A library of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{user} needs {error.name}, which isn't installed: pip install 'lit-rlhf[{extra}]'. {otherwise}".strip()
        ) from error
