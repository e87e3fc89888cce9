"""Texts of a data set as HTML in which nothing of theirs is alive: no tags, scripts or pictures, only Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from lit_rlhf.data.records import Text
from lit_rlhf.extras import importing_extra

with importing_extra("annotate", "Annotating"):
    from markdown_it import MarkdownIt

# No HTML passes; `javascript:` and its kin are no links; pictures would fetch from elsewhere, so they stay text.
_MARKDOWN = MarkdownIt("js-default", {"html": False, "linkify": False, "breaks": True})
_MARKDOWN.disable("image")


def _open_elsewhere(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrs |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
    return str(self.renderToken(tokens, index, options, env))


_MARKDOWN.add_render_rule("link_open", _open_elsewhere)


def turns(text: Text, role: str, *, markdown: bool) -> list[tuple[str, Markup]]:
    """A prompt or an answer as turns of a conversation: role and HTML of each.

    Args:
        text: Plain text is one turn.
        role: What plain text is called.
        markdown: Render Markdown; else show the text as it is written.
    """
    if isinstance(text, str):
        return [(role, _html(text, markdown=markdown))]
    return [(_utf8(turn["role"]), _message(turn, markdown=markdown)) for turn in text]


def _message(turn: Mapping[str, Any], *, markdown: bool) -> Markup:
    content = turn["content"]
    further = {key: value for key, value in turn.items() if key not in ("role", "content")}
    if content is not None and not isinstance(content, str):  # parts, as of multimodal messages
        further, content = {"content": content, **further}, None
    html = _html(content, markdown=markdown) if content else Markup()
    if further:  # a call of a tool, a name
        code = json.dumps(further, ensure_ascii=False, indent=2, default=str)
        html += Markup("<pre><code>{}</code></pre>").format(_utf8(code))
    return html


def _html(text: str, *, markdown: bool) -> Markup:
    if markdown:
        return Markup(_MARKDOWN.render(_utf8(text)))  # noqa: S704  (escaped by the renderer: html is off)
    return Markup('<div class="as-written">{}</div>').format(escape(_utf8(text)))


def _utf8(text: str) -> str:
    # JSON may hold lone surrogates, a page can't; a NUL is nothing that can be seen.
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
