"""What the parser says of a wrong option, in the words of the person who wrote it."""

import inspect
import re
from difflib import get_close_matches
from importlib import import_module

from lit_rlhf.cli.help import described_classes
from lit_rlhf.errors import LitRLHFError

PACKAGES = ("callbacks", "data", "modules", "objectives", "rewards", "rollout")
"""Packages of classes that a configuration can name."""

# jsonargparse tells of each member of a union why it doesn't fit, and repeats what was given: the whole configuration.
_NOISE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*|Given value: .*"
    r"|(- )?Expected a <class 'NoneType'>|Expected a path but (?!\S*(?:/|\.ya?ml\b)).*)$"
)
_KEY = re.compile(r'^Parser key "(?P<key>.+?)":\s*(?P<rest>.*)$')
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>.+)':$")


def own_error(error: BaseException | None) -> LitRLHFError | None:
    """The library's own error in a chain of causes: what a constructor said before the parser wrapped it; None without one."""
    while error is not None:
        if isinstance(error, LitRLHFError):
            return error
        error = error.__cause__ or error.__context__
    return None


def first_line(error: BaseException) -> str:
    r"""What an error of another library says, as one sentence.

    Example:
        >>> first_line(ValueError("Invalid beta.\\nMore of it."))
        'Invalid beta.'
        >>> first_line(KeyError())
        'KeyError.'
    """
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".") + "."


def describe(text: str) -> str:
    r"""The parser's message without its noise: which option of which class, and the way out.

    Example:
        >>> describe(
        ...     "Errors:\n  - Expected a <class 'int'>. Got value: x\n  - Expected a <class 'NoneType'>"
        ... )
        'Expected int. Got value: x'
    """
    keys: list[str] = []
    found: list[str] = []
    path = ""
    for raw in text.splitlines():
        line = raw.strip().removeprefix("- ")
        if not line or _NOISE.match(line):
            continue
        if match := _KEY.match(line):
            keys.append(match["key"])
            line = match["rest"]
        elif match := _CLASS.match(line):
            path, line = match["path"], ""
        line = _say(line, path, keys)
        if line and line not in found:
            found.append(line)
    where = ".".join(keys)
    return f"{where}: {'; '.join(found)}" if where else "; ".join(found)


def _say(line: str, path: str, keys: list[str]) -> str:
    if match := re.fullmatch(r"Option '(.+)' is not accepted", line):
        near = _near(match[1], _options(path))
        name = path.rpartition(".")[2] if path.startswith("lit_rlhf.") else path
        return (
            f"{name} has no option {match[1]!r}.{near} Its options: --{'.'.join(keys)}.help {name}"
        )
    if match := re.fullmatch(r"(--\S+: )?Expected a dot import path string: (\S+)", line):
        return f"{match[1] or ''}{_no_class(match[2])}"
    if match := re.fullmatch(r"No module named '(.+)'", line):
        return f"{path}: there is no module {match[1]!r} in the current directory or on PYTHONPATH"
    return re.sub(r"<class '(.+?)'>", r"\1", line).replace("Expected a ", "Expected ")


def _no_class(name: str) -> str:
    names = [name for package in PACKAGES for name, _ in described_classes(package)]
    if name in names:
        return (
            f"{name} is a class of another kind, the value of an option: see its options with --KEY.help {name}, "
            "as in --model PreferenceModule --model.loss.help DPO"
        )
    return (
        f"there is no class {name!r}.{_near(name, names)} Give the name of one of the library's classes (lit-rlhf "
        "fit --help), or module.Class for one of your own"
    )


def _near(word: str, names: list[str]) -> str:
    close = get_close_matches(word, names, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _options(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    bases = getattr(import_module(module), name).__mro__ if module else ()
    return sorted(
        {option for base in bases for option in inspect.signature(base.__init__).parameters}
    )
