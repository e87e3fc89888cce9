"""Options: the one way to refuse one that is out of its range, and which are plain values (layer L0)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lit_rlhf.errors import ConfigurationError

_LONGEST = 160  # characters of a value in a message


def check_option(valid: bool, owner: object, name: str, value: object, allowed: str) -> None:
    """Refuse a value outside its range.

    Args:
        valid: Whether the value is in range; a comparison that nan fails.
        owner: The object whose option it is, or the function.
        name: The option.
        value: What was given.
        allowed: The range in words, and what the option does at its edge where that helps.

    Raises:
        ConfigurationError: Not valid.
    """
    if not valid:
        called = getattr(owner, "__name__", type(owner).__name__)
        raise ConfigurationError(f"{called}({name}={shown(value)}): {name} must be {allowed}.")


def check_fields(options: Any, told: Mapping[str, str] | None = None) -> None:
    """Refuse values of other kinds than a dataclass of options says, and make text of paths.

    Args:
        options: The dataclass, whose fields hold plain values and dataclasses.
        told: By field, what it must be in words, where its type says too little.

    Raises:
        ConfigurationError: Names the field, its value and what it must be.
    """
    hints = get_type_hints(type(options))
    for name in (each.name for each in fields(options)):
        value, kinds = getattr(options, name), _kinds(hints[name])
        if isinstance(value, os.PathLike) and str in kinds:
            value = os.fspath(value)
            setattr(options, name, value)
        allowed = (told or {}).get(name) or " or ".join(map(_said, kinds))
        check_option(any(_is_of(value, kind) for kind in kinds), options, name, value, allowed)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_of(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return is_whole(value) if kind is int else is_number(value)
    kind = get_origin(kind) or kind
    return isinstance(value, (list, tuple) if kind is list else kind)


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = [f'"{choice}"' for choice in get_args(kind)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    words[NoneType] = "left out"
    return words.get(kind) or f"a {(get_origin(kind) or kind).__name__}"


def check_shapes(owner: object, **tensors: Any) -> None:
    """Refuse tensors of several shapes, which torch would compare each with each where one is (B, 1) and another (B,).

    Args:
        owner: What was given them.
        tensors: By name; what is no tensor, and single numbers, go with any.

    Raises:
        ConfigurationError: Names them with their shapes.
    """
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}
    if len({shape for shape in shapes.values() if shape}) > 1:
        given = ", ".join(f"{name} of the shape {shape}" for name, shape in shapes.items() if shape)
        raise ConfigurationError(
            f"{type(owner).__name__} was given {given}: they must have one shape. Of scores (B, 1), as other people's "
            "classifiers give them, take scores[:, 0]."
        )


def shown(value: object) -> str:
    """A value as messages show it, on one line and cut where it is long, as models and tables are."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_choice(owner: object, name: str, value: object, *choices: str) -> None:
    """Refuse what is none of some words; see `check_option`."""
    check_option(value in choices, owner, name, value, either(choices))


def either(choices: Sequence[str]) -> str:
    """Words as a sentence names them: two or more of which one is meant."""
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def is_text(value: object) -> bool:
    """Whether a value is text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def is_whole(value: object, least: int | None = None) -> bool:
    """Whether a value is a whole number of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def is_number(value: object) -> bool:
    """Whether a value is a number; nan and the infinities are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_plain(value: object) -> bool:
    """Whether a value is what a file can hold: text, a number, a boolean, None, and lists and mappings of these."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)
