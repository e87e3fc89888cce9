"""Every option of every class of the reference is explained there: in the docstring of it or a base, or below a field.

Left out are options that another library's class takes, which explains them, and the records that the library makes.
"""

import ast
import inspect
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise

import docstring_parser
import pytest

from lit_rlhf.callbacks import StopAfter
from lit_rlhf.data import FileSource
from lit_rlhf.modules import PPOPolicyModule
from lit_rlhf.objectives import KTO
from tests.docs.pages import PAGES, ROOT

REFERENCE = sorted(
    line.removeprefix("::: ").strip()
    for page in PAGES
    if page.startswith("api/")
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    if line.startswith("::: lit_rlhf.") and line != "::: lit_rlhf.types"
)


@cache
def explained_fields(module: str) -> dict[str, set[str]]:
    """By class of a module, its fields that a text stands below."""
    tree = ast.parse(inspect.getsource(import_module(module)))
    return {
        each.name: {
            ast.unparse(node.target)
            for node, after in pairwise(each.body)
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr)
        }
        for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef)
    }


@cache
def explained_by(base: type) -> set[str]:
    """The names that a class of the library explains itself."""
    text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
    found = set(explained_fields(base.__module__).get(base.__name__, set()))
    for part in docstring_parser.parse(text).meta:
        found |= {name.strip() for name in str(getattr(part, "arg_name", "")).split(",")}
    return found


def explained(kind: type) -> set[str]:
    """The names that a class and its bases explain."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("lit_rlhf.")]
    return set().union(*map(explained_by, ours))


def classes(package: str) -> list[type]:
    """Those that a page of the reference shows."""
    home = vars(import_module(package))
    ours = [kind for kind in home.values() if inspect.isclass(kind)]
    return [
        kind
        for kind in ours
        if kind.__module__.startswith(package) and not issubclass(kind, Exception | tuple)
    ]


def options(kind: type) -> list[str]:
    """What one may give a class by name."""
    made = inspect.unwrap(kind.__init__)
    if not getattr(made, "__module__", "").startswith("lit_rlhf.") and not is_dataclass(kind):
        return []
    given = inspect.signature(kind).parameters.values()
    return [each.name for each in given if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]


@pytest.mark.parametrize("package", REFERENCE)
def test_every_option_is_explained(package: str) -> None:
    silent = {
        f"{kind.__name__}.{name}"
        for kind in classes(package)
        for name in set(options(kind)) - explained(kind)
    }
    assert not silent


def test_the_walk_reaches_the_classes() -> None:
    assert {"lit_rlhf.modules", "lit_rlhf.objectives", "lit_rlhf.callbacks"} <= set(REFERENCE)
    walked = {kind for package in REFERENCE for kind in classes(package)}
    assert {PPOPolicyModule, KTO, StopAfter, FileSource} <= walked
    assert {"backbone", "reward", "value_loss"} <= set(options(PPOPolicyModule))
