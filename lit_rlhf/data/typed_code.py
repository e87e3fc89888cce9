"""What decides the work of functions and classes whose module has no file: those typed into a notebook or a prompt."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

_HAS_DOCSTRING = 0x4000000  # of `co_flags`, from Python 3.13; before, the first constant is the docstring or None


class TypedCode(NamedTuple):
    """Code of functions and of all that they name in their module, and the other values that decide."""

    code: list[Any]
    values: dict[str, Any]


def typed_code(
    beginning: Iterable[FunctionType | type], is_typed: Callable[[str], bool]
) -> TypedCode:
    """Follow functions and classes to what they name; comments, docstrings and line numbers don't count.

    Args:
        beginning: Where to begin.
        is_typed: Whether a module of a name has no file. Of what stands in others, the name counts.
    """
    code: list[Any] = []
    values: dict[str, Any] = {}
    waiting, seen = list(beginning), set()
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        name = item.__qualname__
        if isinstance(item, type):
            waiting += [base for base in item.__bases__ if is_typed(base.__module__)]
            functions, others = _members(item)
            waiting += functions
            values |= {f"{name}.{key}": value for key, value in others.items()}
            continue
        code.append([name, [spelled(each) for each in codes_of(item.__code__)]])
        values[f"{name}()"] = [item.__defaults__, item.__kwdefaults__, enclosed(item)]
        for key, value in named_globals(item).items():
            if isinstance(value, FunctionType | type) and is_typed(value.__module__):
                waiting.append(value)
            else:
                values[key] = _by_name(value)
    return TypedCode(sorted(code), values)


def named_globals(function: FunctionType) -> Mapping[str, Any]:
    """What a function, and the functions within it, name in their module."""
    used = {name for code in codes_of(function.__code__) for name in code.co_names}
    return {name: function.__globals__[name] for name in sorted(used & function.__globals__.keys())}


def enclosed(function: FunctionType) -> dict[str, Any]:
    """Variables of the function that a function stands in; of methods that `dataclass` made, none decides."""
    if function.__code__.co_qualname.startswith("__create_fn__."):
        return {}  # types and defaults of fields, which are options
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    pairs = zip(names, cells, strict=True)
    return {name: cell.cell_contents for name, cell in pairs if name != "__class__"}  # of `super()`


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def spelled(code: CodeType) -> list[Any]:
    """A code's steps, its constants but for the docstring, and its names."""
    constants = code.co_consts
    if sys.version_info >= (3, 13):
        documented = bool(code.co_flags & _HAS_DOCSTRING)
    else:
        documented = bool(constants) and code.co_name[0] != "<"  # a lambda has none
    kept = [each for each in constants[int(documented) :] if not isinstance(each, CodeType)]
    # The order of a set differs between processes.
    shown = [
        str(sorted(map(repr, each))) if isinstance(each, frozenset) else repr(each) for each in kept
    ]
    return [code.co_code.hex(), shown, list(code.co_names)]


def _members(kind: type) -> tuple[list[FunctionType], dict[str, Any]]:
    """A class's functions, and its other attributes."""
    functions, others = [], {}
    for name, member in vars(kind).items():
        inner = getattr(member, "fget", getattr(member, "__func__", member))
        if isinstance(inner, FunctionType):
            functions.append(inner)
        elif not name.startswith(("__", "_abc_")):
            others[name] = _by_name(member)
    return functions, others


def _by_name(value: Any) -> Any:
    """Modules, and what is callable, as their names; other values as they are."""
    if isinstance(value, ModuleType):
        return [value.__name__, str(getattr(value, "__version__", ""))]
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    return value
