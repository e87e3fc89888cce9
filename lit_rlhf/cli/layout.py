"""Prompts of plain text, written as the model has learned them."""

import sys
from collections.abc import Iterable
from typing import Any

from lit_rlhf.data import AsChat, Format
from lit_rlhf.evaluation.scorers import Layout
from lit_rlhf.models import Backbone


def as_learned(
    format: Format, layout: Layout, backbone: Backbone, prompts: Iterable[Any]
) -> Format:
    """The format, or that as chats; says so where nobody asked for them.

    Args:
        format: Of prompts that may be plain text.
        layout: As chats, or text as it stands. auto: as chats where the model has learned of chats, and the prompts
            aren't such already, as messages or as rendered text.
        backbone: The model.
        prompts: As the rows have them.
    """
    learned = backbone.prompts
    of_chats = learned is not None and learned.kind == "chat"
    system = learned.system if learned is not None and of_chats else None
    chat = AsChat(format, system=system or None)
    if layout != "auto":
        return chat if layout == "chat" else format
    texts = [each for each in prompts if isinstance(each, str)]
    if learned is None or not of_chats or not texts or all(map(learned.is_in, texts)):
        return format
    sys.stderr.write(
        "Prompts are written as chats, as the model has learned them (--layout text: as they stand).\n"
    )
    return chat
