"""What the parser and constructors say of a wrong option, in the words of the person who wrote it."""

import dataclasses
import inspect
import sysconfig
import traceback
import types
from importlib import import_module
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lit_rlhf.cli.slips import near, no_option, no_option_of
from lit_rlhf.cli.unloaded import described_classes
from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.internals.jsonargparse import Complaint, flat_options, read_refusal

PACKAGES = ("callbacks", "data", "judges", "modules", "objectives", "rewards", "rollout", "rounds")
"""Packages of classes that a configuration can name."""

DEBUG = "LIT_RLHF_DEBUG"
"""The environment variable that asks for tracebacks."""

_HERE = str(Path(__file__).parents[1])
_LIBRARIES = ("site-packages", "dist-packages", sysconfig.get_path("stdlib"))


class ConstructorError(ConfigurationError):
    """What a constructor that isn't ours raised; `kind` is its class."""

    def __init__(self, kind: Any, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def own_error(error: BaseException | None) -> LitRLHFError | None:
    """The library's own error in a chain of causes: what a constructor said before the parser wrapped it, if any."""
    while error is not None:
        if isinstance(error, LitRLHFError):
            return error
        error = error.__cause__ or error.__context__
    return None


def sentence(error: BaseException) -> str:
    r"""What an error that isn't ours says, where it was raised if that is the user's file or ours, and how to see more.

    Example:
        >>> sentence(ValueError("Invalid beta.\nMore of it."))
        'Invalid beta. LIT_RLHF_DEBUG=1 shows the traceback.'
    """
    frames = traceback.extract_tb(error.__traceback__)
    at = frames[-1] if frames else None
    known = at is None or (
        any(place in at.filename for place in _LIBRARIES) and not at.filename.startswith(_HERE)
    )
    where = "" if known or at is None else f" ({type(error).__name__}, {at.filename}:{at.lineno})"
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{said}{where}. {DEBUG}=1 shows the traceback."


def construct(kind: Any, *args: Any, **options: Any) -> Any:
    """Make an object of a configuration's class.

    Raises:
        ConstructorError: Its constructor raises anything else than an error of ours; the message has the options.
    """
    refuse_misfits(kind, options)
    try:
        return kind(*args, **options)
    except LitRLHFError:
        raise
    except Exception as error:
        try:
            defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
        except ValueError:  # of a class written in C
            defaults = {}
        given = {n: v for n, v in options.items() if n not in defaults or v is not defaults[n]}
        said = ", ".join(f"{name}={value!r:.80}" for name, value in given.items())
        message = f"{kind.__name__}({said}) can't be made: {sentence(error)}"
        raise ConstructorError(kind, message) from error


def refuse_all_misfits(config: Any) -> None:
    """Refuse misfits in every class of a parsed configuration.

    Raises:
        ConfigurationError: There is one; the message begins with its class's key.
    """
    for key, kind, given in flat_options(config):
        try:
            refuse_misfits(kind, given)
        except ConfigurationError as error:
            raise ConfigurationError(f"{key}: {error}") from error


def refuse_misfits(kind: Any, options: dict[str, Any]) -> None:
    """Refuse what the parser lets through for options of the library's classes: null for a value, a list for a group.

    Raises:
        ConfigurationError: There is one.
    """
    plain = [n for n, v in options.items() if v is None or isinstance(v, list | str | int | float)]
    if not plain or not kind.__module__.startswith("lit_rlhf."):
        return
    hints = get_type_hints(kind.__init__)
    for name in plain:
        hint, value = hints.get(name, Any), options[name]
        union = get_origin(hint) in (Union, types.UnionType)
        members = get_args(hint) if union else (hint,)
        if value is None and not {Any, type(None)}.intersection(members):
            raise ConfigurationError(f"{kind.__name__}({name}=null): {name} must have a value.")
        if value is not None and all(
            dataclasses.is_dataclass(m) or m is type(None) for m in members
        ):
            raise ConfigurationError(
                f"{kind.__name__}({name}={value!r}): {name} is a group of options: --KEY.{name}.help shows them."
            )


def describe(text: str, command: str = "fit") -> str:
    r"""The parser's message without its noise: which option of which class, and the way out.

    Args:
        text: The message.
        command: Whose parser it is.

    Example:
        >>> describe(
        ...     "Errors:\n  - Expected a <class 'int'>. Got value: x\n  - Expected a <class 'NoneType'>"
        ... )
        'Expected int. Got value: x'
    """
    refusal = read_refusal(text)
    # A value that fits no member of a union that has classes in it: none was meant.
    places = [c for c in refusal.complaints if c.kind == "place"]
    others = places or [c for c in refusal.complaints if c.kind != "class"]
    found = others if others and all("Expected" in c.text for c in others) else refusal.complaints
    said = "; ".join(dict.fromkeys(_say(complaint, refusal.key, command) for complaint in found))
    told = "Got value" in said or places or found is refusal.complaints
    if refusal.value and not told:
        said += f". Got value: {refusal.value}"
    return f"{refusal.key}: {said}" if refusal.key else said


def _say(complaint: Complaint, key: str, command: str) -> str:
    path, word = complaint.path, complaint.word
    match complaint.kind:
        case "option":
            module, _, made = path.rpartition(".")
            name = made if path.startswith("lit_rlhf.") else path
            bases = getattr(import_module(module), made).__mro__ if module else ()
            options = {n for base in bases for n in inspect.signature(base.__init__).parameters}
            said = no_option_of(name, word, sorted(options), key)
        case "class":
            said = _no_class(complaint)
        case "module":
            said = f"{path}: there is no module {word!r} in the current directory or on PYTHONPATH"
            if path.endswith(import_module("lit_rlhf.data.readers").KINDS):  # brings torch
                said += f". Of a file give the path: --{key}.path {path}"
        case "attribute":
            said = f"{path} defines no {word!r}.{near(word, list(vars(import_module(path))))}"
        case "abstract":
            said = f"name a class, such as {_subclasses(word)}: {{class_path: NAME, init_args: {{...}}}}"
        case "place":
            said = (
                f"{word} is neither a class nor a YAML file that is there. What a class takes is given option by "
                f"option: --{key}.help CLASS shows them"
            )
        case "required":
            shown = f"--{key}.help shows what it is" if key else f"lit-rlhf {command} --help"
            said = f"{word} must be given: {shown}"
        case "unknown":
            said = no_option(word, command)
        case _:
            said = complaint.text
    return said


def _subclasses(path: str) -> str:
    """The library's classes that can stand where an abstract one is asked for."""
    module, _, name = path.rpartition(".")
    base = getattr(import_module(module), name)
    return ", ".join(
        each
        for package in PACKAGES
        for each, _ in described_classes(package)
        if issubclass(getattr(import_module(f"lit_rlhf.{package}"), each), base)
    )


def _no_class(complaint: Complaint) -> str:
    word = complaint.word
    option = complaint.text.partition(" ")[0] + " " if complaint.text.startswith("--") else ""
    names = [name for package in PACKAGES for name, _ in described_classes(package)]
    if word in names:
        return (
            f"{option}{word} is a class of another kind, the value of an option: see its options with --KEY.help "
            f"{word}, as in --model PreferenceModule --model.loss.help DPO"
        )
    return (
        f"{option}there is no class {word!r}.{near(word, names)} Give the name of one of the library's classes "
        "(lit-rlhf fit --help), or module.Class for one of your own"
    )
