"""How the prompts of a data set are written: as text or by a chat template, and with what around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

_SLOT = "{prompt}"
_MARKS = frozenset("<>[]#|:\n")
"""What stands in the words that a template puts around a prompt, and seldom in those that prompts share by chance."""
Kind = Literal["chat", "text", "mixed"]


@dataclass(frozen=True)
class PromptForm:
    """What all prompts of a data set have in common beside what they ask.

    Attributes:
        kind: Messages that a chat template renders, plain text, or some of each.
        opening: What stands before the question; of chats without a system turn.
        closing: What stands behind it: the beginning of an answer. None: too few prompts to tell.
        system: The system turn of chats, "" where they have none. None: they have several.
    """

    kind: Kind
    opening: str
    closing: str | None
    system: str | None = ""
    with_system: str = ""
    """The opening with the system turn, as the template renders it."""

    def __str__(self) -> str:
        if self.kind == "mixed":
            return "partly text, partly chats"
        return repr(f"{self.with_system or self.opening}{_SLOT}{self.closing or ''}")

    @classmethod
    def of_chats(cls, tokenizer: PreTrainedTokenizerBase, systems: Sequence[str]) -> "PromptForm":
        """Of conversations.

        Args:
            tokenizer: Its chat template renders them.
            systems: Their different system turns, "" for none; at most two are needed.
        """
        system = systems[0] if len(systems) == 1 else None
        opening, closing = _around(tokenizer, [])
        turns = [{"role": "system", "content": system}] if system else []
        with_system = _around(tokenizer, turns)[0] if turns else ""
        return cls("chat", opening, closing, system, with_system)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> "PromptForm":
        """Of prompts of plain text, by what they share at both ends."""
        different = list(dict.fromkeys(texts))
        if len(different) < 2:
            return cls("text", "", None)
        opening = _common_start(different)
        closing = _common_start([text[::-1] for text in different])[::-1]
        return cls("text", _marked(opening), _marked(closing))

    def is_in(self, text: str) -> bool:
        """Whether the words around prompts of this form, where there are any, stand in a text already."""
        words = [part.strip() for part in (self.opening, self.closing or "") if part.strip()]
        return bool(words) and all(part in text for part in words)

    def differs_from(self, other: "PromptForm") -> bool:
        """Whether a model that has learned of prompts of one form is given another language by the other."""
        if "mixed" in (self.kind, other.kind):
            return False
        if self.kind == other.kind == "chat":
            systems = {self.system, other.system}
            templates = {(form.opening, form.closing) for form in (self, other)}
            return len(templates) == 2 or (None not in systems and len(systems) == 2)
        if self.closing is None or other.closing is None:
            return self.kind != other.kind
        # Text may be chats that somebody has rendered before.
        differ = _differ(self.closing[::-1].strip(), other.closing[::-1].strip())
        if differ or self.kind != other.kind:
            return differ
        # Where one goes on from the other, the shorter one may be of a data set with prompts of several kinds.
        first, second = sorted((self.opening, other.opening), key=len)
        return not second.startswith(first) and _differ(first, second)

    def way_to(self, other: "PromptForm") -> str:
        """How to write prompts of this form in another one, by options of the data."""
        if other.kind == "chat" and (self.kind == "text" or self.system != other.system):
            if self.system and not other.system:
                return "leave the system turn out of the rows and of data.init_args.format"
            system = f" with system: {other.system!r}" if other.system else ""
            return f"set data.init_args.format to AsChat{system} around the format that reads them"
        if other.kind == "chat":
            return "give data.init_args.tokenizer and the model the chat template that it was trained with"
        if self.kind == "chat":
            return (
                "give the prompts as plain text, or set data.init_args.format to AsTranscript (with the markers Human: "
                "and Assistant:) around the format that reads them"
            )
        return "write the prompts with the same words around them"


def warn_of_prompts(what: str, learned: PromptForm | None, given: PromptForm | None) -> None:
    """Warn, in one process, where a model is given prompts of another form than it has learned of.

    Args:
        what: The model, as the beginning of a sentence.
        learned: Of the data that it was trained on, where it is known.
        given: Of the data at hand.
    """
    if learned is not None and given is not None and given.differs_from(learned):
        rank_zero_warn(
            f"{what} has learned of prompts written as {learned}, and those here are written as "
            f"{given}: what it says of "
            f"them means little. To write them alike, {given.way_to(learned)}; or train it on prompts like those here."
        )


def _around(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> tuple[str, str]:
    """What a chat template puts before and behind a question."""
    asked = [*turns, {"role": "user", "content": _SLOT}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 - a template may refuse such turns; it says so where it is used
        return "", ""
    opening, _, closing = str(text).removeprefix(tokenizer.bos_token or "").rpartition(_SLOT)
    return opening, closing


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    pairs = zip(first, last, strict=False)
    return first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]


def _marked(shared: str) -> str:
    return shared if _MARKS & set(shared) else ""


def _differ(first: str, second: str) -> bool:
    """Whether two texts part at words of a template, not of prompts that begin alike by chance."""
    alike = len(_common_start([first, second]))
    return bool(_MARKS & {*first[alike:], *second[alike:]})
