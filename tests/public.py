"""Which names of a package are public: what its `__init__.py` imports as `A as A`, read from the file."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def public_names(package: str) -> list[str]:
    """The names, sorted; those of `lit_rlhf`, which are loaded late, are in its `.pyi`."""
    file = ROOT.joinpath(*package.split("."), "__init__.py")
    text = (file.with_suffix(".pyi") if package == "lit_rlhf" else file).read_text(encoding="utf-8")
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names if alias.asname == alias.name]
    return sorted(names)
