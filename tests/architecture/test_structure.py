"""The shape of the package: what imports what, how large things are, and that the public names are documented."""

import ast
import importlib
import inspect
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pytest
from jsonargparse._typehints import get_all_subclass_paths
from lightning.pytorch import LightningModule

from lit_rlhf import modules
from tests.public import public_names

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lit_rlhf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = sorted(
    path for folder in ("lit_rlhf", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
# From the files, not by importing: a module that fails to import must fail one test, not the collection of all.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
)
LAYER_0 = {"lit_rlhf.types", "lit_rlhf.errors", "lit_rlhf.seeding"}
PURE = {
    "collections",
    "dataclasses",
    "functools",
    "itertools",
    "jaxtyping",
    "math",
    "torch",
    "typing",
    "warnings",
}
MAX_FILE, MAX_FUNCTION = 480, 70


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_found() -> None:
    assert len(SOURCES) > 20
    assert len(ALL_FILES) > len(SOURCES)
    assert len(MODULES) > 20


def test_every_module_imports() -> None:
    failures = {}
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - all that fail are named
            failures[module] = error
    assert not failures


def test_the_package_reaches_its_type_checker() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_files_are_short() -> None:
    sizes = {_name(each): len(each.read_text(encoding="utf-8").splitlines()) for each in ALL_FILES}
    assert not {name: size for name, size in sizes.items() if size > MAX_FILE}, "lines"


class _Parsed(NamedTuple):
    """What is asked of a file; trees of all files would fill the memory."""

    functions: list[tuple[str, int, int]]
    """Name, first and last line."""
    imports: list[ast.Import | ast.ImportFrom]


@cache
def _parsed(path: Path) -> _Parsed:
    found = _Parsed([], [])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.functions.append((node.name, node.lineno, node.end_lineno or node.lineno))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.imports.append(node)
    return found


def _code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code: neither blank, comment nor docstring."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def test_code_lines_leave_out_docstrings_comments_and_blanks() -> None:
    text = 'def f(\n    x,\n):\n    """Doc.\n\n    More.\n    """\n    # why\n\n    y = """a\nb"""\n    return y\n'
    assert _code_lines(text) == {1, 2, 3, 10, 11, 12}


def test_functions_are_short() -> None:
    long = {}
    for path in SOURCES:
        spans = [each for each in _parsed(path).functions if each[2] - each[1] >= MAX_FUNCTION]
        code = _code_lines(path.read_text(encoding="utf-8")) if spans else set()
        for name, first, last in spans:
            if (size := len(code.intersection(range(first, last + 1)))) > MAX_FUNCTION:
                long[f"{_name(path)}: {name}"] = size
    assert not long, "lines of code"


def test_public_names_are_documented() -> None:
    silent = []
    for module in MODULES:
        if module.endswith("__main__"):
            continue
        loaded = importlib.import_module(module)
        if not (loaded.__doc__ or "").strip(". \n"):
            silent.append(module)
        for name in public_names(module) if hasattr(loaded, "__path__") else ():
            value = getattr(loaded, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                # Own text: neither inherited nor the signature that `dataclass` writes.
                text = (
                    vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
                ) or ""
                if not text.strip() or text.startswith(f"{name}("):
                    silent.append(f"{module}.{name}")
    assert not silent, "no docstring of their own"


def test_packages_say_what_is_public_in_one_way() -> None:
    """`from lit_rlhf.x.y import A as A` in an `__init__.py`; no list beside it, and no name that isn't handed on."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path == PACKAGE / "__init__.py":
            continue
        assert "__all__" not in text, f"{_name(path)} has a list of names: write `import A as A`"
        if path.name == "__init__.py":
            tree = ast.parse(text)
            stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            silent = {
                alias.name
                for node in tree.body
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_rlhf")
                for alias in node.names
                if alias.asname != alias.name
            }
            unused = sorted(silent - stored)
            assert not unused, f"{_name(path)} imports {unused}: `as` the same?"


PACKAGES = {name for name in MODULES if (PACKAGE.parent / name.replace(".", "/")).is_dir()}
SILENT = {"lit_rlhf.internals", "lit_rlhf.objectives.pairwise", "lit_rlhf.models.kernels"}


@pytest.mark.parametrize("package", sorted(PACKAGES - SILENT))
def test_packages_have_public_names(package: str) -> None:
    assert public_names(package)


@pytest.mark.parametrize(
    "package", [m for m in MODULES if m.count(".") == 1 and (ROOT / m.replace(".", "/")).is_dir()]
)
def test_options_list_what_users_may_name(package: str) -> None:
    """The "known subclasses" of an option are exported by their room; what is for inner use has an underscore."""
    kinds = [
        kind for _, kind in inspect.getmembers(importlib.import_module(package), inspect.isclass)
    ]
    listed = {
        path
        for kind in kinds
        if kind.__module__.startswith(package)
        for hint in get_type_hints(kind.__init__).values()
        for path in get_all_subclass_paths(hint)
        if path.rpartition(".")[2] not in str(hint)  # the option's own type
    }
    inner = {path for path in listed if path.startswith("lit_rlhf.") and path.count(".") > 2}
    # The world of verify can't be written in YAML, and no command that reads YAML imports it.
    assert {path for path in inner if not path.startswith("lit_rlhf.verify.")} == set()


def _imports(path: Path) -> Iterator[str]:
    for node in _parsed(path).imports:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield node.module or ""


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").rglob("*.py")), ids=_name)
def test_functional_imports_torch_and_little_else(path: Path) -> None:
    foreign = {
        name
        for name in _imports(path)
        if name.split(".")[0] not in PURE
        and name not in LAYER_0
        and not name.startswith("lit_rlhf.functional")
    }
    assert not foreign, f"{_name(path)} imports {sorted(foreign)}"


def test_layers_hold() -> None:
    """The contracts of pyproject.toml; in a process of its own, as the linter changes logging and the import path."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_modules_are_not_deep() -> None:
    """What varies is injected: at most four of our classes on the way to LightningModule, and one base each."""
    kinds = [getattr(modules, name) for name in public_names("lit_rlhf.modules")]
    kinds = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, LightningModule)]
    assert len(kinds) > 20
    for kind in kinds:
        ours = [base for base in kind.__mro__ if base.__module__.startswith("lit_rlhf.")]
        assert len(ours) <= 4, kind
        assert all(len(base.__bases__) == 1 for base in ours), kind


def _imported(path: Path) -> set[str]:
    """The package's modules that a file imports, those for types and within functions too."""
    found = set()
    for node in _parsed(path).imports:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(MODULES) or {node.module}
    return found & set(MODULES)


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = dict(zip(MODULES, map(_imported, SOURCES), strict=True))
    while free := [name for name, others in imports.items() if not others & imports.keys()]:
        for name in free:
            del imports[name]
    assert not imports, "a circle, or what imports one"


def test_dependencies_have_two_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        requirement for extra in project["optional-dependencies"].values() for requirement in extra
    ]
    for requirement in [*project["dependencies"], *extras]:
        if requirement.startswith(f"{project['name']}["):  # another extra, bounded above
            continue
        bounds = {
            bound.rstrip("0123456789.").strip()
            for bound in requirement.replace("]", "],").split(",")
        }
        assert any(bound.endswith(">=") for bound in bounds), requirement
        assert any(bound == "<" for bound in bounds), requirement
