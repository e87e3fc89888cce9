"""What the parser and constructors say of a wrong option, in the words of the person who wrote it."""

import dataclasses
import inspect
import sysconfig
import traceback
import types
from importlib import import_module
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lit_rlhf.cli.early import no_option, no_option_of
from lit_rlhf.cli.unloaded import described_classes
from lit_rlhf.errors import ConfigurationError, LitRLHFError, near
from lit_rlhf.internals.jsonargparse import Complaint, flat_options, named_classes, read_refusal

PACKAGES = ("callbacks", "data", "judges", "modules", "objectives", "rewards", "rollout", "rounds")
"""Packages of classes that a configuration can name."""

_OTHERS = (
    *("lightning.pytorch.Callback", "lightning.pytorch.loggers.Logger"),
    *("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
)
"""Of other libraries, whose subclasses options take."""

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
    at = _place(error)
    where = "" if at is None else f" ({type(error).__name__}, {at.filename}:{at.lineno})"
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{said}{where}. {DEBUG}=1 shows the traceback."


def _place(error: BaseException) -> traceback.FrameSummary | None:
    """Where it was raised, if that is the user's file or ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    at = frames[-1]
    in_library = any(place in at.filename for place in _LIBRARIES)
    return None if in_library and not at.filename.startswith(_HERE) else at


def raised_by_users(error: BaseException | None) -> BaseException | None:
    """What the user's file, or ours, raised in a chain of causes, before the parser made a text of it; if any."""
    while error is not None and _place(error) is None:
        error = error.__cause__ or error.__context__
    return error


def refused_by(error: BaseException, package: str) -> bool:
    """Whether a package raised it in so many words, as it does of options; else something failed there."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    said = (frames[-1].line or "").startswith("raise ")
    return said and package in Path(frames[-1].filename).parts


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


class Constructor:
    """`construct`, which remembers what was refused.

    The parser keeps the error of a union's first member alone: of a strategy, which may be a word, that it is none.
    """

    def __init__(self) -> None:
        self.refused: list[LitRLHFError] = []

    def __call__(self, kind: Any, *args: Any, **options: Any) -> Any:
        """Make an object."""
        try:
            return construct(kind, *args, **options)
        except LitRLHFError as error:
            self.refused.append(error)
            raise

    def error_behind(self, error: BaseException) -> LitRLHFError | None:
        """The library's own error that the parser wrapped, or told of."""
        told = (each for each in self.refused if str(each).partition("\n")[0] in str(error))
        return own_error(error) or next(told, None)


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
    found = _meant(refusal.complaints)
    said = "; ".join(dict.fromkeys(_say(complaint, refusal.key, command) for complaint in found))
    if refusal.value and "Got value" not in said and {c.kind for c in found} == {"other"}:
        said += f". Got value: {refusal.value}"
    return f"{refusal.key}: {said}" if refusal.key else said


def _meant(complaints: list[Complaint]) -> list[Complaint]:
    """What is said of the member of a union that was meant; the others refuse what was never for them."""
    if places := [c for c in complaints if c.kind == "place"]:
        return places
    # A class was found, and what it takes is at fault; its base, which is tried after it, takes still less.
    for kind in ("required", "option"):
        if of_class := [c for c in complaints if c.kind == kind]:
            return of_class[:1]
    found = [c for c in complaints if c.kind != "subclass"] or complaints
    if named := [c for c in found if c.kind == "class" and near(c.word, _known_classes())]:
        return named
    # A value that is near no class's name fits no plain type: no class was meant.
    plain = [c for c in found if c.kind != "class"]
    plain = [c for c in plain if c.kind != "group"] or plain
    return plain if plain and all("Expected" in c.text for c in plain) else found


def _say(complaint: Complaint, key: str, command: str) -> str:
    path, word = complaint.path, complaint.word
    match complaint.kind:
        case "option":
            module, _, made = path.rpartition(".")
            name = made if path.startswith("lit_rlhf.") else path
            bases = getattr(import_module(module), made).__mro__ if module else ()
            options = {n for base in bases for n in inspect.signature(base.__init__).parameters}
            # Of a class given for it all options are refused; a subclass may not hand it on to its base.
            word = word.partition(".init_args")[0]
            said = no_option_of(name, word, sorted(options - {word}), key)
        case "class":
            said = _no_class(complaint)
        case "module":
            data = path.endswith(import_module("lit_rlhf.data.readers").KINDS)  # brings torch
            of_file = f". Of a file give the path: --{key}.path {path}" if data else ""
            said = f"{path}: there is no module {word!r} in the current directory or on PYTHONPATH"
            said += of_file
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
        case "unknown" | "nowhere":
            words = word if complaint.kind == "unknown" else f"--{word}"
            said = _no_option(words, key, command)
        case "group":
            said = f"{word!r} stands where a group of options does: --{key}.help shows them"
        case _:
            said = complaint.text
    return said


def _no_option(words: str, key: str, command: str) -> str:
    """What is said of an option that is nowhere: of a command, or of a group that the class at a key hasn't."""
    if not key:
        return no_option(words, command, _trainer_options())
    name = words.removeprefix("--").replace("=", " ").split()[0]
    return f"there is no option --{key}.{name}. --{key}.help shows those of its class"


def _subclasses(path: str) -> str:
    """The library's classes that can stand where an abstract one is asked for."""
    base = _loaded(path)
    return ", ".join(
        each
        for package in PACKAGES
        for each, _ in described_classes(package)
        if issubclass(getattr(import_module(f"lit_rlhf.{package}"), each), base)
    )


def _loaded(path: str) -> type:
    """A class by its path, imported where it is asked for: most commands say what is wrong without."""
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _trainer_options() -> list[str]:
    trainer = inspect.signature(_loaded("lightning.pytorch.Trainer"))
    return [f"--trainer.{name}" for name in trainer.parameters]


def _names() -> list[str]:
    return [name for package in PACKAGES for name, _ in described_classes(package)]


def _known_classes() -> list[str]:
    """Of the library, and those of Lightning and torch that its options take."""
    return [*_names(), *named_classes(*map(_loaded, _OTHERS))]


def _no_class(complaint: Complaint) -> str:
    word = complaint.word
    option = complaint.text.partition(" ")[0] + " " if complaint.text.startswith("--") else ""
    if word in _names():
        return (
            f"{option}{word} is a class of another kind, the value of an option: see its options with --KEY.help "
            f"{word}, as in --model PreferenceModule --model.loss.help DPO"
        )
    hint = near(word, _known_classes())
    return (
        f"{option}there is no class {word!r}.{hint} Give the name of one of the library's classes "
        "(lit-rlhf fit --help), or module.Class for one of your own"
    )
