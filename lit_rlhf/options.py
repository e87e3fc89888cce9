"""Options: the one way to refuse one that is out of its range, and which are plain values (layer L0)."""

from collections.abc import Mapping, Sequence

from lit_rlhf.errors import ConfigurationError


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
        raise ConfigurationError(f"{called}({name}={value!r}): {name} must be {allowed}.")


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
