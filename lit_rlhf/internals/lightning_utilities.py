"""Of lightning_utilities, read from 0.15: how `apply_to_collection` makes a dataclass anew, for Fabric."""

import copy
from dataclasses import fields
from functools import cache
from typing import Any, Self


class Convertible:
    """Base of frozen dataclasses that a module gives back, which Fabric converts to another precision.

    It takes a deep copy, with a memo by which each field stays what it is, and sets the fields of that one. Such a copy
    is open until its last field is set; all others are frozen.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy; an open one where the memo leaves each field as it is."""
        kept = [getattr(self, each.name) for each in fields(self)]  # type: ignore[arg-type]
        is_open = all(memo.get(id(value), memo) is value for value in kept)
        made = object.__new__(type(self))
        made.__dict__.update({n: copy.deepcopy(value, memo) for n, value in vars(self).items()})
        if is_open:
            opened = _opened(type(self))  # type: ignore[arg-type]  # classes have hashes
            object.__setattr__(made, "__class__", opened)
        return made


@cache
def _opened(kind: type[Any]) -> type[Any]:
    def set_field(self: Any, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == fields(kind)[-1].name:
            object.__setattr__(self, "__class__", kind)

    return type(kind.__name__, (kind,), {"__setattr__": set_field})
