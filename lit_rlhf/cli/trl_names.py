"""What the names of a script stand for, told from its text alone."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


class Names:
    """The values of names that have one, wherever in their scope they are read.

    Args:
        tree: The script.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.parents = {
            child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)
        }
        self._values: dict[tuple[ast.AST, str], list[ast.expr | None]] = defaultdict(list)
        given: dict[ast.expr, ast.expr] = {}
        for node in ast.walk(tree):  # an assignment before its target
            if isinstance(node, ast.Assign):
                given |= dict.fromkeys(node.targets, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                given[node.target] = node.value
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._values[self._scope(node), node.id].append(given.get(node))
            elif isinstance(node, ast.arg):
                self._values[self._scope(node), node.arg].append(None)

    def value(self, node: ast.AST) -> ast.AST:
        """What a name stands for: what is assigned to it, where that is the same everywhere; else the node itself."""
        scope: ast.AST | None = node if isinstance(node, ast.Name) else None
        while scope is not None and scope in self.parents:
            scope = self._scope(scope)
            values = self._values.get((scope, node.id)) if isinstance(node, ast.Name) else None
            if values:
                known = [each for each in values if each is not None]
                same = len({ast.dump(each) for each in known}) == 1 and len(known) == len(values)
                return self.value(known[0]) if same else node
        return node

    def literal(self, node: ast.AST) -> Any:
        """A literal, or a name that stands for one; `torch.bfloat16` is bfloat16, `TaskType.SEQ_CLS` SEQ_CLS.

        Raises:
            ValueError: It is neither.
        """
        node = self.value(node)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("torch", "TaskType"):
            return node.attr
        if isinstance(node, ast.List | ast.Tuple):
            return [self.literal(each) for each in node.elts]
        if isinstance(node, ast.Dict) and all(node.keys):
            keys = [self.literal(key) for key in node.keys if key is not None]
            return dict(zip(keys, map(self.literal, node.values), strict=True))
        return ast.literal_eval(node)

    def is_literal(self, node: ast.AST) -> bool:
        """Whether it can be read."""
        try:
            self.literal(node)
        except (ValueError, TypeError):
            return False
        return True

    def is_certain(self, node: ast.AST) -> bool:
        """Whether a statement runs whenever its scope does, and once."""
        while (node := self.parents[node]) in self.parents and not isinstance(node, _FUNCTIONS):
            if not is_main(node):
                return False
        return True

    def _scope(self, node: ast.AST) -> ast.AST:
        """The function, class or module that a node is in."""
        node = self.parents[node]
        while node in self.parents and not isinstance(node, _FUNCTIONS):
            node = self.parents[node]
        return node


def is_main(node: ast.AST) -> bool:
    """Whether it is what a script does, and a module doesn't: `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def called(call: ast.Call) -> str:
    """The last part of the function's name."""
    return ast.unparse(call.func).rpartition(".")[2]


def defines(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module defines; what is for the script alone defines none."""
    if is_main(statement):
        return set()
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def excerpt(tree: ast.Module, text: str, names: Iterable[str]) -> str:
    """The statements of a module that define names, and those that these need, as they stand and in their order."""
    kept: set[ast.stmt] = set()
    wanted = set(names)
    while found := {each for each in tree.body if wanted & defines(each)} - kept:
        kept |= found
        wanted |= {
            node.id for each in found for node in ast.walk(each) if isinstance(node, ast.Name)
        }
    lines = text.split("\n")
    parts = []
    for each in (each for each in tree.body if each in kept):
        first = min(node.lineno for node in (each, *getattr(each, "decorator_list", ())))
        parts.append("\n".join(lines[first - 1 : each.end_lineno]))
    return "\n\n\n".join(parts) + "\n"
