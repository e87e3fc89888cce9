"""What is said of a word that isn't known, and which was meant."""

from collections.abc import Sequence
from difflib import get_close_matches

from lit_rlhf.cli.completion import options_of


def near(word: str, names: Sequence[str]) -> str:
    """A question for the names that are near a word, with a space before it; empty where none is."""
    close = get_close_matches(word, names, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def no_option_of(kind: str, word: str, options: Sequence[str], key: str) -> str:
    """What is said of an option that a class hasn't; `key` is where the class stands."""
    return f"{kind} has no option {word!r}.{near(word, options)} Its options: --{key}.help {kind}"


def no_option(words: str, command: str, others: Sequence[str] = ()) -> str:
    """What is said of words that belong to no option of a command; `others` it has beside those of its help."""
    option = next((each for each in words.split() if each.startswith("-")), None)
    name = "" if option is None else option.partition("=")[0]
    known = [
        each
        for each in [*options_of(command.split(maxsplit=1)[0]), *others]
        if not each.endswith(".help") and each != name  # of another subcommand
    ]
    said = (
        f"there is no option {name}.{near(name, known) or near(name.partition('.')[0], known)}"
        if name
        else f"{words} belongs to no option."
    )
    return f"{said} lit-rlhf {command} --help lists them"
