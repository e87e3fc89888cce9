"""Walks: tests that go through every kind, option or configuration.

The default suite makes the steps that fail where most things would; `make test-walks`, which CI runs, the others.
"""

from collections.abc import Iterable
from typing import Any

import pytest


def walk(cases: Iterable[Any], *shown: Any) -> list[Any]:
    """Cases as parameters, all but those shown marked as `walk`; a tuple is several parameters."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in shown else [pytest.mark.walk],
        )
        for case in cases
    ]
