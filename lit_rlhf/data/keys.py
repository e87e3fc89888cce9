"""Keys of the cache: a hash of all that decides which tokens a row becomes.

An object is described by its class and its declared options: the fields of a dataclass, else the arguments of its
constructor, kept under their names. A class outside of the library counts with its code too, which is that of its
module and of all modules of one's own that this imports, without comments and docstrings; where it was typed into a
notebook, that of its functions and of all that they name. An author who states a
`version` on the class takes that upon himself: then the version counts, and the code doesn't. A method `cache_key`
that gives plain values replaces all of this.
"""

import ast
import enum
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.typed_code import codes_of, enclosed, named_globals, spelled, typed_code
from lit_rlhf.tokenizers import tokenizer_fingerprint

_OURS = "lit_rlhf"
_FORMATS = ("answers", "pairs", "rankings", "steps")
_PREPARING = (
    *("chat", "conversion", "encoding", "pieces", "preparation", "readers", "records", "repeats"),
    *("sources", "wrappers", "written", *(f"formats.{name}" for name in _FORMATS)),
)
"""The modules of this package that turn files into tokens."""
_INSTALLED = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")}
)
_PLACES = {"site-packages", "dist-packages"}


class UnknownContentError(Exception):
    """What decides the content can't be had as plain values; the message says of which object."""


def content_key(parts: Mapping[str, Any]) -> str:
    """Hash what decides the content of an entry; values are described by `describe`.

    Raises:
        UnknownContentError: See `describe`.
    """
    try:
        text = json.dumps(describe(dict(parts)), sort_keys=True)
    except RecursionError as error:
        raise UnknownContentError("an option holds itself") from error
    return hashlib.sha256(text.encode()).hexdigest()


@functools.singledispatch
def describe(value: Any) -> Any:
    """A value as plain JSON; see the top of this file.

    Raises:
        UnknownContentError: An object keeps a declared option under no name of its own, or source code can't be read.
    """
    if callable(getattr(value, "cache_key", None)):
        return [_name(type(value)), describe(value.cache_key())]
    return [describe_class(type(value)), describe(declared_options(value))]


@describe.register(NoneType | bool | int | float | str)
def _(value: Any) -> Any:
    return value


@describe.register(list | tuple)
def _(value: Any) -> Any:
    return [describe(item) for item in value]


@describe.register(set | frozenset)
def _(value: Any) -> Any:
    return sorted(json.dumps(describe(item), sort_keys=True) for item in value)


@describe.register(Mapping)
def _(value: Any) -> Any:
    return {str(key): describe(item) for key, item in value.items()}


@describe.register(bytes | Path | enum.Enum | re.Pattern | BuiltinFunctionType)
def _(value: Any) -> Any:
    return [type(value).__name__, repr(value)]


@describe.register(functools.partial)
def _(value: Any) -> Any:
    return describe([value.func, value.args, value.keywords])


@describe.register(MethodType)
def _(value: Any) -> Any:
    return describe([value.__func__, value.__self__])


@describe.register(PreTrainedTokenizerBase)
def _(value: Any) -> Any:
    return tokenizer_fingerprint(value)


@describe.register(type)
def describe_class(kind: type) -> Any:
    """Its name; of what isn't the library's also the stated `version`, or the code."""
    if "version" in vars(kind) and not _is_ours(kind.__module__):
        return [_name(kind), describe(vars(kind)["version"])]
    theirs = [base for base in kind.__mro__ if _is_users(base.__module__)]
    functions = [
        member
        for base in theirs
        for member in vars(base).values()
        if isinstance(member, FunctionType)
    ]
    modules = sorted({base.__module__ for base in theirs})
    typed = [base for base in theirs if _is_typed(base.__module__)]
    return [
        _name(kind),
        [code_digest(name) for name in modules if not _is_typed(name)],
        [_surroundings(function) for function in functions],
        *([describe(typed_code(typed, _is_typed))] if typed else []),
    ]


def declared_options(value: Any) -> dict[str, Any]:
    """The options that an object's class declares, with their values.

    Raises:
        UnknownContentError: An argument of its constructor is no attribute of it, or the class is another library's.
    """
    kind = type(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if not _is_ours(kind.__module__) and not _is_users(kind.__module__):
        raise UnknownContentError(f"what a {_name(kind)} holds is not known")
    found = {}
    for name in option_names(kind):
        if not hasattr(value, name):
            raise UnknownContentError(
                f"{_name(kind)} has the option {name!r} and keeps it under no attribute of that name"
            )
        found[name] = getattr(value, name)
    return found


def users_options(kind: type, values: Mapping[str, Any], skip: Collection[str]) -> dict[str, Any]:
    """The options that a class derived from the library's has of its own.

    Args:
        kind: The class.
        values: The options by name.
        skip: Options that count elsewhere.

    Raises:
        UnknownContentError: One has no value.
    """
    names = [] if _is_ours(kind.__module__) else [n for n in option_names(kind) if n not in skip]
    for name in names:
        if name not in values:
            raise UnknownContentError(
                f"{_name(kind)} has the option {name!r} and keeps it under no attribute of that name"
            )
    return {name: values[name] for name in names}


def option_names(kind: type) -> list[str]:
    """Named arguments of the constructors of a class and of its bases, up to the library's."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if _is_ours(base.__module__) and not _is_ours(kind.__module__):
            break
        if isinstance(init := vars(base).get("__init__"), FunctionType):
            parameters = list(inspect.signature(init).parameters.values())[1:]
            plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            names |= dict.fromkeys(parameter.name for parameter in plain)
            if len(plain) == len(parameters):
                break  # it hands nothing on that it doesn't name
    return list(names)


@functools.cache
def code_of_preparation() -> str:
    """A hash of the library's own code that turns files into tokens: whoever changes it makes the cache anew."""
    modules = [*(f"{_OURS}.data.{name}" for name in _PREPARING), f"{_OURS}.tokenizers"]
    trees = [ast.dump(_parse(name)) for name in modules]
    return hashlib.sha256("".join(trees).encode()).hexdigest()


def code_digest(module: str) -> str:
    """A hash of a module's code and of that of the modules of one's own that it imports.

    Comments, docstrings and line breaks don't count. Of installed packages, the version counts.

    Raises:
        UnknownContentError: Its source can't be read.
    """
    digest = hashlib.sha256()
    waiting, seen = [module], {module}
    while waiting:
        name = waiting.pop()
        digest.update(name.encode())
        origin = _origin(name) or ""
        if origin.endswith(tuple(EXTENSION_SUFFIXES)):
            digest.update(Path(origin).read_bytes())
            continue
        tree = _parse(name)
        digest.update(ast.dump(tree).encode())
        for imported in sorted(_imports(tree, name) - seen):
            seen.add(imported)
            if _is_users(imported):
                waiting.append(imported)
            elif not _is_ours(imported):
                package = sys.modules.get(imported.partition(".")[0])
                digest.update(f"{imported} {getattr(package, '__version__', '')}".encode())
    return digest.hexdigest()


def _parse(module: str) -> ast.Module:
    try:
        tree = ast.parse(Path(_origin(module) or module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UnknownContentError(f"the source of module {module!r} can't be read") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module, module: str) -> set[str]:
    """Names of modules that a module imports, anywhere in it."""
    loaded = sys.modules.get(module)
    package = getattr(loaded, "__package__", None) or module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (parent, node.module or "") if part)
            found.add(base)  # and what is named may be a module in it
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if _origin(name) is not None}


def _origin(module: str) -> str | None:
    """The file of a module, `built-in`, or None where there is no such module."""
    loaded = sys.modules.get(module)
    if isinstance(loaded, ModuleType):
        return str(getattr(loaded, "__file__", None) or "built-in")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return None if spec is None else str(spec.origin or "built-in")


@functools.cache
def _is_users(module: str) -> bool:
    """Whether a module is neither the library's nor installed."""
    origin = _origin(module)
    if _is_ours(module) or origin is None or origin in ("built-in", "frozen"):
        return module == "__main__"  # a notebook's, or a prompt's
    path = Path(origin).resolve()
    # Some systems (Debian's Python, hosted notebooks) have packages in places that sysconfig doesn't name.
    return not str(path).startswith(_INSTALLED) and not _PLACES.intersection(path.parts)


def _is_typed(module: str) -> bool:
    """Whether a module of one's own has no file: its code is what its functions hold."""
    return _is_users(module) and not Path(_origin(module) or "").is_file()


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _OURS


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@describe.register(FunctionType)
def _(function: FunctionType) -> Any:
    name = f"{function.__module__}.{function.__qualname__}"
    if not _is_users(function.__module__):
        return name
    if _is_typed(function.__module__):
        return [name, describe(typed_code([function], _is_typed))]
    defaults = describe([function.__defaults__, function.__kwdefaults__])
    described = [name, code_digest(function.__module__), defaults, _surroundings(function)]
    if function.__name__ == "<lambda>":  # several of one module may have one name
        described += [spelled(code) for code in codes_of(function.__code__)]
    return described


def _surroundings(function: FunctionType) -> Any:
    """What a function takes from around it: variables of the function it stands in, plain globals of its module."""
    plain = {
        name: value
        for name, value in named_globals(function).items()
        if isinstance(value, bool | int | float | str)
    }
    return [describe(enclosed(function)), plain]
