"""What can be counted in an answer, and what can be changed in it without a difference to what it says."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from lit_rlhf.evaluation.comparisons import Comparison
from lit_rlhf.types import Text

_LIST_ITEM = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE)
_MARKDOWN = re.compile(
    r"^#{1,6} |\*\*[^*\n]+\*\*|__[^_\n]+__|^> |`[^`\n]+`|\[[^\]\n]+\]\([^)\n]+\)|^\|.*\|",
    re.MULTILINE,
)
POLITE = "\n\nI hope this helps! Let me know if you have any other questions."
"""Says nothing of the question."""

FEATURES: Mapping[str, Callable[[str], int]] = {
    "characters": len,
    "list items": lambda text: len(_LIST_ITEM.findall(text)),
    "markdown": lambda text: len(_MARKDOWN.findall(text)),
    "paragraphs": lambda text: len(re.findall(r"\n\s*\n", text)) + 1,
    "exclamation marks": lambda text: text.count("!"),
}
"""What raters may go by too: a model is biased where it does so more than they do. Of markdown, headings, bold text,
quotes, code, links and rows of tables are counted."""


def doubled_spaces(text: str) -> str:
    """Each space between words twice.

    Example:
        >>> doubled_spaces(" a b")
        ' a  b'
    """
    return re.sub(r"(?<=\S) (?=\S)", "  ", text)


def polite_ending(text: str) -> str:
    """A friendly sentence at the end that says nothing."""
    return text + POLITE


def changed(
    comparison: Comparison, change: Callable[[str], str], *, only: int | None = None
) -> Comparison:
    """A comparison with its answers changed.

    Args:
        comparison: What to change.
        change: From text to text.
        only: Which answer; None: all.
    """
    answers = tuple(
        _apply(answer, change) if only is None or only == place else answer
        for place, answer in enumerate(comparison.answers)
    )
    return replace(comparison, answers=answers)


def turned_round(comparison: Comparison) -> Comparison:
    """A comparison with its answers in the opposite order."""
    answers, values = comparison.answers[::-1], comparison.values[::-1]
    return replace(comparison, answers=answers, values=values)


def _apply(text: Text, change: Callable[[str], str]) -> Text:
    if isinstance(text, str):
        return change(text)
    last = len(text) - 1
    return [
        {**turn, "content": change(str(turn["content"]))} if place == last else turn
        for place, turn in enumerate(text)
    ]
