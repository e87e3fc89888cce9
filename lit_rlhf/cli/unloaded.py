"""Classes of the library, read from their files: to import them takes seconds, to say what they are called doesn't."""

import ast
import builtins
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class Unloaded:
    """A class of the library as its file defines it.

    Args:
        module: Where it is defined.
        node: Its definition.
    """

    def __init__(self, module: str, node: ast.ClassDef) -> None:
        self.name = node.name
        self.lineage: list[ast.ClassDef] = [node]
        """Its own definition and those of its bases within the library, the nearest first."""
        self.foreign: set[str] = set()
        """Bases that are another library's, as the files write them."""
        for expression in node.bases:
            base = expression.value if isinstance(expression, ast.Subscript) else expression
            name = ast.unparse(base)
            if found := find_class(module, name):
                lineage = found.lineage  # a base of two comes after both
                self.lineage = [each for each in self.lineage if each not in lineage] + lineage
                self.foreign |= found.foreign
            else:
                self.foreign.add(name)

    @property
    def is_error(self) -> bool:
        """Whether it is raised, not built."""
        bases = [getattr(builtins, name, object) for name in self.foreign]
        return any(issubclass(base, BaseException) for base in bases)

    @property
    def summary(self) -> str:
        """The first line of its docstring, or of that of the nearest base which has one."""
        said = (ast.get_docstring(node) for node in self.lineage)
        return next((text for text in said if text), "").split("\n")[0]

    @property
    def options(self) -> list[str]:
        """The arguments of its constructor and of those of its bases."""
        made = [
            each.args
            for node in self.lineage
            for each in node.body
            if isinstance(each, ast.FunctionDef) and each.name == "__init__"
        ]
        names = {each.arg for args in made for each in [*args.args, *args.kwonlyargs]}
        return sorted(names - {"self"})

    @property
    def is_open(self) -> bool:
        """Whether a method is left to subclasses: abstract, raising NotImplementedError, Lightning's training step."""
        methods: dict[str, ast.stmt] = {}  # or what stands in place of one
        for node in self.lineage:
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    methods.setdefault(each.name, each)
                elif (
                    isinstance(each, ast.AnnAssign)
                    and each.value
                    and isinstance(each.target, ast.Name)
                ):
                    methods.setdefault(each.target.id, each)
        untrained = "LightningModule" in self.foreign and "training_step" not in methods
        return untrained or any(
            isinstance(each, ast.FunctionDef) and _is_left(each) for each in methods.values()
        )


def _is_left(method: ast.FunctionDef) -> bool:
    if any(ast.unparse(each).endswith("abstractmethod") for each in method.decorator_list):
        return True
    names = {each.id for each in ast.walk(method) if isinstance(each, ast.Name)}
    return "NotImplementedError" in names and not method.name.startswith("__")


@cache
def described_classes(package: str) -> list[tuple[str, str]]:
    """Classes of one of the library's packages that can be built, with the first line of their docstrings.

    By name, acronyms first. Left out are errors, and classes with a method that is left to subclasses.
    """
    home = f"lit_rlhf.{package}"
    imports = [node for node in _tree(home).body if isinstance(node, ast.ImportFrom)]
    names = {each.asname or each.name for node in imports for each in node.names}
    found = [
        (name, find_class(home, name))
        for name in sorted(names, key=lambda name: (not name.isupper(), name))
    ]
    return [
        (name, kind.summary)
        for name, kind in found
        if kind is not None and not kind.is_error and not kind.is_open
    ]


@cache
def find_class(module: str, name: str) -> Unloaded | None:
    """The class that a module of the library knows by a name; None where it is no class, or not the library's."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Unloaded(module, node)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lit_rlhf."):
            for each in node.names:
                if name == (each.asname or each.name):
                    return find_class(str(node.module), each.name)
    return None


@cache
def _tree(module: str) -> ast.Module:
    place = _ROOT.joinpath(*module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))
