"""The one way to refuse an option that is out of its range (layer L0)."""

from lit_rlhf.errors import ConfigurationError


def check_option(valid: bool, owner: object, name: str, value: object, allowed: str) -> None:
    """Refuse a value outside its range.

    Args:
        valid: Whether the value is in range; a comparison that nan fails.
        owner: The object whose option it is.
        name: The option.
        value: What was given.
        allowed: The range in words, and what the option does at its edge where that helps.

    Raises:
        ConfigurationError: Not valid.
    """
    if not valid:
        raise ConfigurationError(
            f"{type(owner).__name__}({name}={value!r}): {name} must be {allowed}."
        )
