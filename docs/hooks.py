"""What the site's build needs beside MkDocs: formulas without a script, and the names that packages re-export."""

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Turn what Markdown marked as a formula into MathML, which browsers draw themselves: no script, no network."""
    return _FORMULA.sub(_mathml, content)


class HouseStyle(griffe.Extension):
    """What the generator of the reference must know of how this code is written."""

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """`from lit_rlhf.x.y import A as A` in an `__init__.py` makes A a public name of the package."""
        if mod.is_init_module and not mod.exports:
            mod.exports = [
                name
                for name, member in mod.members.items()
                if member.is_alias and member.target_path.startswith("lit_rlhf.")  # type: ignore[union-attr]
            ]

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """The section with a doctest is called Example here, and Examples there."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def _mathml(match: re.Match[str]) -> str:
    inline, display = match.group(2), match.group(3)
    latex = html.unescape(inline if display is None else display)
    return str(convert(latex, display="inline" if display is None else "block"))
