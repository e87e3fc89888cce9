"""Conversations as text: what a tokenizer's chat template makes of them, and what it must not do to an answer."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.records import CALLS, InvalidRowError, Record, Text, shorten
from lit_rlhf.errors import ConfigurationError

_QUESTION, _ANSWER = "What is it?", "It is so."


class Rendered(NamedTuple):
    """A conversation as text.

    Args:
        prompt: With its generation prompt: what a rollout starts from.
        wholes: Prompt and answer together, one for each completion.
    """

    prompt: str
    wholes: list[str]


class _Request(NamedTuple):
    turns: list[dict[str, Any]]
    mode: str  # what comes behind the turns: a generation prompt, nothing, or more of the last turn
    options: Mapping[str, Any]


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template, many with one call.

    A prompt that ends in the assistant's words is gone on with: its completions are the rest of that turn.

    Args:
        tokenizer: Its template is used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._checked = False
        self._known: dict[tuple[str, ...], list[str]] = {}

    def __call__(self, records: Sequence[Record]) -> list[Rendered | InvalidRowError]:
        """Render one or more records of messages, steps without their steps.

        Raises:
            ConfigurationError: There is no template, or one that gives an answer no beginning.
        """
        if self.tokenizer.chat_template is None:
            raise ConfigurationError(
                f"The rows hold messages, and the tokenizer {self.tokenizer.name_or_path!r} has no chat template to "
                "render them with. Set tokenizer.chat_template, take the tokenizer of a chat model, or make plain text "
                "of them: set `format` to AsTranscript around the format that reads them."
            )
        requests = [_requests(record) for record in records]
        texts = iter(self._render([request for group in requests for request in group]))
        pairs = zip(records, requests, strict=True)
        return [self._settle(record, [next(texts) for _ in group]) for record, group in pairs]

    def _settle(
        self, record: Record, texts: list[str | InvalidRowError]
    ) -> Rendered | InvalidRowError:
        for text in texts:
            if isinstance(text, InvalidRowError):
                return text
        if unread := self._unread(record):
            return InvalidRowError(
                "the chat template doesn't read what the row gives it",
                f"{', '.join(unread)} would be lost: set tokenizer.chat_template to one that reads it, or leave it out",
            )
        prompt, *wholes = (str(text) for text in texts)
        self._check_generation_prompt(record)
        for completion, whole in zip(record.completions if wholes else (), wholes, strict=True):
            contents = [] if isinstance(completion, str) else [t["content"] for t in completion]
            for lost in contents:
                # Templates may shift white space.
                if lost.strip() in whole or "".join(lost.split()) in "".join(whole.split()):
                    continue
                return InvalidRowError(
                    "the chat template leaves out text of the answer",
                    f"of {shorten(lost)} it renders {shorten(whole[-80:])}. Some templates strip what stands between "
                    "<think> and </think>: set tokenizer.chat_template to one that keeps it, give the thought in the "
                    "message's key `reasoning_content` if the template reads that, or give prompt and completion as "
                    "plain text",
                )
        return Rendered(prompt, wholes)

    def _render(self, requests: list[_Request]) -> list[str | InvalidRowError]:
        groups: dict[tuple[str, str], list[int]] = {}
        for place, request in enumerate(requests):
            options = json.dumps(request.options, sort_keys=True, default=repr)
            groups.setdefault((request.mode, options if request.options else ""), []).append(place)
        texts: dict[int, str | InvalidRowError] = {}
        for places in groups.values():
            try:
                texts.update(zip(places, self._apply([requests[p] for p in places]), strict=True))
            except Exception:  # noqa: BLE001  (of one conversation among many: each is rendered by itself)
                texts |= {place: self._apply_alone(requests[place]) for place in places}
        return [texts[place] for place in range(len(requests))]

    def _apply(self, requests: list[_Request]) -> list[str]:
        mode, options = requests[0].mode, dict(requests[0].options)
        texts: Any = self.tokenizer.apply_chat_template(
            [request.turns for request in requests],
            tools=options.pop("tools", None),
            tokenize=False,
            add_generation_prompt=mode == "open",
            continue_final_message=mode == "continued",
            **options,
        )
        return list(texts)

    def _apply_alone(self, request: _Request) -> str | InvalidRowError:
        try:
            return self._apply([request])[0]
        except Exception as error:  # noqa: BLE001  (templates are programs: they raise what they like)
            roles = [turn["role"] for turn in request.turns]
            return InvalidRowError(
                "the chat template refuses the messages",
                f"{' '.join(str(error).split())[:300] or type(error).__name__} (roles: {roles})",
            )

    def _unread(self, record: Record) -> list[str]:
        """What the row gives the template, beside what its messages say, and the template has no word for."""
        options = record.template or {}
        texts = [text for text in (record.prompt, *record.completions) if not isinstance(text, str)]
        called = any(turn.get(CALLS) for text in texts for turn in text)
        names = (*options, CALLS) if called else tuple(options)
        if names and names not in self._known:
            template = self.tokenizer.get_chat_template(tools=options.get("tools"))
            self._known[names] = [
                n for n in names if not re.search(rf"\b{re.escape(n)}\b", template)
            ]
        return self._known.get(names, [])

    def _check_generation_prompt(self, record: Record) -> None:
        """Refuse a template whose prompts end in the user's own words, or that puts a header before an answer only."""
        turns = [] if self._checked else _turns(record.prompt)
        if not turns or turns[-1]["role"] != "user":
            return
        turns = [*turns[:-1], {"role": "user", "content": _QUESTION}]
        answered = [*turns, {"role": "assistant", "content": _ANSWER}]
        options = record.template or {}
        modes = [(turns, "open"), (turns, "closed"), (answered, "closed")]
        texts = [self._apply_alone(_Request(each, mode, options)) for each, mode in modes]
        if not all(isinstance(text, str) for text in texts):
            return
        self._checked = True
        opened, closed, whole = (str(text) for text in texts)
        marker = opened[opened.rfind(_QUESTION) + len(_QUESTION) :]
        header = whole[len(opened) :].partition(_ANSWER)[0]
        # A template like Mistral's needs no generation prompt: the user's turn ends in a marker, then comes the answer.
        if opened == closed and (header.strip() or not marker.strip()):
            raise ConfigurationError(
                f"The chat template of the tokenizer {self.tokenizer.name_or_path!r} has no generation prompt: with "
                f"add_generation_prompt it renders the same, {opened[-40:]!r}, and an answer would "
                + (f"begin with {header!r}" if header.strip() else "have no beginning")
                + ". Give the tokenizer a template that handles `add_generation_prompt`, or give plain-text columns."
            )


def _requests(record: Record) -> list[_Request]:
    turns, options = _turns(record.prompt), record.template or {}
    if turns[-1]["role"] != "assistant":
        answered = [[*turns, *_turns(completion)] for completion in record.completions]
        prompt = _Request(turns, "open", options)
    else:
        *before, opened = turns
        answered = []
        for first, *rest in map(_turns, () if record.steps else record.completions):
            whole = {**first, "content": opened["content"] + first["content"]}
            answered.append([*before, whole, *rest])
        prompt = _Request(turns, "continued", options)
    if record.steps:
        return [prompt]
    return [prompt, *(_Request(each, "closed", options) for each in answered)]


def _turns(text: Text) -> list[dict[str, Any]]:
    return [] if isinstance(text, str) else [dict(turn) for turn in text]
