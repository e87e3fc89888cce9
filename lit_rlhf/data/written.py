"""What other programs write in place of messages and of rows: text that spells them, one object around all of them."""

import ast
import json
import re
from contextlib import suppress
from typing import Any

from lit_rlhf.errors import DataError

ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    "observation": "tool",
}
"""What ShareGPT calls the roles; others keep their names."""
_KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function", *ROLES)
_AROUND = ("data", "rows", "examples", "samples", "instances", "train")
"""What the list of all rows is called in a file that is one object."""
_OF_ROWS = {
    "prompt", "question", "instruction", "query", "input", "messages", "conversation", "conversations", "chosen",
    "rejected", "completion", "completions", "response", "responses", "answer", "answers", "text",
}  # fmt: skip
"""Columns by which a row is known: an object that has more of them than those of its list is a row itself."""
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_BETWEEN = re.compile(r"""(?<=\})\s+(?=\{["'](?:role|from|content|value)["']:)""")
"""What stands between the messages of an array as NumPy writes it, which knows no commas."""


def written_messages(text: str) -> list[Any] | None:
    """The messages that a text spells in JSON, as Python writes them or as NumPy does; None: it is text."""
    if _MESSAGES.match(text) is None:
        return None
    for parse in (json.loads, ast.literal_eval, _read_array):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found: Any = parse(text.strip())
            return found if isinstance(found, list) and all(map(_is_message, found)) else None
    return None


def _read_array(text: str) -> Any:
    return ast.literal_eval(_BETWEEN.sub(", ", text))


def _is_message(turn: Any) -> bool:
    """Whether it is one beyond doubt: an answer in JSON may be a list of things with roles, or of ways from and to."""
    if not isinstance(turn, dict) or not turn.keys() & {"content", "value", "tool_calls"}:
        return False
    return (turn.get("role") or turn.get("from")) in _KNOWN_ROLES


def refuse_one_object(found: Any, what: str) -> None:
    """Refuse a JSON file that is one object around its rows, as other programs write them.

    Raises:
        DataError: It is.
    """
    if not isinstance(found, dict):
        return
    values = list(found.values())
    around = {name: found[name] for name in _AROUND if _is_rows(found.get(name))}
    own = len(_OF_ROWS & found.keys())
    lists = [n for n, rows in around.items() if own < max(len(_OF_ROWS & set().union(*rows)), 1)]
    columns = all(isinstance(v, list) and not _is_rows(v) for v in values)
    alike = _is_rows(values) and len({frozenset(value) for value in values}) == 1
    several = len(values) > 1 and ((columns and len({*map(len, values)}) == 1) or alike)
    if lists or several:
        way = f"the list {lists[0]!r} of it, alone" if lists else "with pandas orient='records'"
        raise DataError(f"{what} is one object, and must be a list of its rows: write {way}.")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
