"""Warnings that no test hears, besides those of pyproject.toml: by classes, which pytest imports, in seconds."""

import pytest

UNHEARD = (
    # Lightning's advice to users (few workers, no validation data, eval-mode references): tests choose small runs on
    # purpose.
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    # lightning 2.6 against jsonargparse 4.49 and later; gone when Lightning moves on.
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Not in a process that deals tests out and runs none (`-n 2`): it would import Lightning for nothing."""
    if not config.getoption("numprocesses", None):
        for each in UNHEARD:
            config.addinivalue_line("filterwarnings", each)
