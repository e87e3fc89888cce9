"""From records to token ids.

The tokens of a prompt are those of the prompt alone: what a rollout from it starts with, and the same for all its
completions. The tokens of a completion are what follows them in the tokens of prompt and completion together; where the
tokenizer would merge across the seam, the completion is tokenized by itself.

With messages, prompt and whole conversation are rendered by the chat template (the prompt with its generation prompt)
and what the conversation's text adds is the completion. Templates that render a prompt otherwise once an answer follows
(some insert or drop a thinking block) leave no such suffix: then prompt and completions part at the longest common
prefix of the renderings' tokens, and the row is counted in `Encoder.cut_prompts`.

Of many texts, ids are put together from those of their pieces, where that gives the tokenizer's own (`pieces.py`).
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, chain, takewhile
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.chat import ChatRenderer, Rendered
from lit_rlhf.data.pieces import find_pieces
from lit_rlhf.data.records import InvalidRowError, Record, TooLongError
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.tokenizers import around, ask_backend, special_token_ids

LengthPolicy = Literal["drop", "truncate", "truncate_prompt", "error"]
PromptCut = Literal["start", "end"]
_ANCHOR = "\n"
_CHARACTERS_AT_ONCE = 200_000  # a tokenizer's own records of a text take some hundred bytes a token
_FEW_TEXTS = 5000  # before it pays to look for a faster way


class Encoded(NamedTuple):
    """Token ids of a record, and what of it was cut to a limit: `prompt`, `answer`."""

    prompt: list[int]
    completions: list[list[int]]
    cut: tuple[str, ...] = ()


@dataclass
class _Work:
    """A record between its texts and its tokens; a tail that is text still is to be tokenized by itself."""

    record: Record
    texts: Rendered
    prompt: list[int] = field(default_factory=list)
    tails: list[list[int] | str] = field(default_factory=list)

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.record.prompt, str)


@dataclass
class Encoder:
    """Tokenizes records, ends completions with EOS and keeps to length limits.

    A completion of plain text gets EOS when it lacks one. Of a conversation the template decides; what it puts after
    the last special token (often a line break) is cut off, since a rollout ends there, and EOS is added if no special
    token ends the turn. An empty prompt becomes the start token (BOS, else EOS). Steps are tokenized each by itself, so
    that a step ends at a token; those that don't fit whole are cut off.

    Args:
        tokenizer: The tokenizer.
        max_prompt_length: Most tokens of a prompt. None: no limit.
        max_completion_length: Most tokens of a completion, EOS included. None: no limit.
        too_long: What is cut where it is too long: nothing, so that such records are not encoded (drop, error), prompts
            alone (truncate_prompt), or prompts and completions (truncate), these from the right: their EOS goes.
        cut_prompt: Which end of a prompt is cut. A BOS stays.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    too_long: LengthPolicy = "drop"
    cut_prompt: PromptCut = "start"
    cut_prompts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._eos = self.tokenizer.eos_token_id
        self._bos = self.tokenizer.bos_token_id
        self._specials = special_token_ids(self.tokenizer)
        self._ids = TextEncoder(self.tokenizer)
        self._blank: dict[tuple[int, ...], bool] = {}

    def __call__(self, record: Record) -> Encoded:
        """Tokenize one record.

        Raises:
            InvalidRowError: A completion has no tokens, or the chat template refuses the conversation.
            TooLongError: Over a limit, and not to be cut.
            ConfigurationError: The tokenizer lacks an EOS token or a chat template with a generation prompt.
        """
        (found,) = self.encode([record])
        if isinstance(found, InvalidRowError):
            raise found
        return found

    def encode(self, records: Sequence[Record]) -> list[Encoded | InvalidRowError]:
        """Tokenize many records with few calls of the tokenizer; those that can't be used give their error.

        Raises:
            ConfigurationError: The tokenizer lacks an EOS token or a chat template with a generation prompt.
        """
        if self._eos is None and any(record.completions for record in records):
            raise ConfigurationError(
                f"The tokenizer {self.tokenizer.name_or_path!r} has no EOS token, so completions would have no end. "
                "Set tokenizer.eos_token and save the tokenizer again."
            )
        with _without_collection():
            works: list[_Work | InvalidRowError] = [
                texts if isinstance(texts, InvalidRowError) else _Work(record, texts)
                for record, texts in zip(records, self._render(records), strict=True)
            ]
            self._tokenize(works)
            self._tokenize_apart(works)
            return [w if isinstance(w, InvalidRowError) else self._finish(w) for w in works]

    # -- text ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _chat(self) -> ChatRenderer:
        return ChatRenderer(self.tokenizer)

    def _render(self, records: Sequence[Record]) -> list[Rendered | InvalidRowError]:
        messages = [record for record in records if not isinstance(record.prompt, str)]
        chats = iter(self._chat(messages) if messages else ())
        rendered: list[Rendered | InvalidRowError] = []
        for record in records:
            if not isinstance(record.prompt, str):
                rendered.append(next(chats))
            elif record.template:
                rendered.append(
                    InvalidRowError(
                        "the row has tools, and its prompt is plain text",
                        f"{sorted(record.template)} are for a chat template: give messages, or leave them out",
                    )
                )
            else:
                wholes = [record.prompt + str(c) for c in record.completions if not record.steps]
                rendered.append(Rendered(record.prompt, wholes))
        return rendered

    # -- tokens -------------------------------------------------------------------------------------------------------

    def _tokenize(self, works: list[_Work | InvalidRowError]) -> None:
        """Prompts, and what of the completions follows them in the tokens of both together."""
        live = [work for work in works if isinstance(work, _Work)]
        ids = {}
        for chat in (False, True):
            texts = [(w.texts.prompt, *w.texts.wholes) for w in live if w.is_chat is chat]
            ids[chat] = self._ids(chain.from_iterable(texts), special=not chat)
        for place, work in enumerate(works):
            if isinstance(work, _Work):
                found = ids[work.is_chat]
                lines = [found[text] for text in (work.texts.prompt, *work.texts.wholes)]
                sound = [line for line in lines if line is not None]
                whole = len(sound) == len(lines)
                works[place] = self._part(work, sound) if whole else _no_text(work.record)

    def _part(self, work: _Work, lines: list[list[int]]) -> _Work | InvalidRowError:
        prompt, wholes = work.texts
        first, *joint = lines
        if all(whole.startswith(prompt) for whole in wholes):
            size = len(first)
            work.prompt = first
            work.tails = [
                ids[size:] if ids[:size] == first else whole[len(prompt) :]
                for ids, whole in zip(joint, wholes, strict=True)
            ]
        else:
            self.cut_prompts += 1
            alike = (len(set(column)) == 1 for column in zip(*lines, strict=False))
            size = sum(1 for _ in takewhile(bool, alike))
            work.prompt = first[:size]
            work.tails = [ids[size:] for ids in joint]
            if size == 0:
                return InvalidRowError(
                    "chat template renders no common prompt",
                    "prompt and conversation share no token",
                )
        if work.record.steps:
            work.tails = [str(step) for step in work.record.completions]
        return work

    def _tokenize_apart(self, works: list[_Work | InvalidRowError]) -> None:
        """Tails that go on from other text, so without the space that some tokenizers put at a start."""
        apart = {
            tail
            for work in works
            if isinstance(work, _Work)
            for tail in work.tails
            if isinstance(tail, str)
        }
        if not apart:
            return
        anchored = self._ids([_ANCHOR, *(_ANCHOR + text for text in apart)], special=False)
        anchor = anchored[_ANCHOR] or []
        found: dict[str, list[int] | None] = {}
        for text in apart:
            ids = anchored[_ANCHOR + text]
            if ids is not None and ids[: len(anchor)] == anchor:
                found[text] = ids[len(anchor) :]
        found |= self._ids(apart - found.keys(), special=False)
        for place, work in enumerate(works):
            if isinstance(work, _Work):
                tails = [found[tail] if isinstance(tail, str) else tail for tail in work.tails]
                sound = [tail for tail in tails if tail is not None]
                work.tails = list(sound)
                if len(sound) < len(tails):
                    works[place] = _no_text(work.record)

    # -- ends and limits ----------------------------------------------------------------------------------------------

    def _finish(self, work: _Work) -> Encoded | InvalidRowError:
        try:
            prompt, limit = work.prompt or self._start(), self.max_prompt_length
            cut: list[str] = []
            if limit is not None and self._is_over("prompt", len(prompt), limit):
                cut.append("prompt")
                prompt = self._shorten(prompt, limit, chat=work.is_chat)
            limit = self.max_completion_length
            tails = [tail for tail in work.tails if not isinstance(tail, str)]
            if not all(tails):
                what = "a step" if work.record.steps else "a completion"
                return InvalidRowError("empty completion", f"{what} has no tokens")
            if work.record.steps:
                tails[-1] = self._end(tails[-1], chat=False)
                totals = list(accumulate(map(len, tails)))
                fitting = len(tails) if limit is None else sum(total <= limit for total in totals)
                if limit is not None and self._is_over(
                    "completion", totals[-1], limit, can_cut=fitting > 0
                ):
                    cut.append("answer")
                    tails = tails[:fitting]
                return Encoded(prompt, tails, tuple(cut))
            tails = [self._end(tail, chat=work.is_chat) for tail in tails]
            over = [limit is not None and self._is_over("completion", len(t), limit) for t in tails]
            if any(over):
                cut.append("answer")
                tails = [tail[:limit] for tail in tails]
            return Encoded(prompt, tails, tuple(cut))
        except InvalidRowError as error:
            return error

    def _shorten(self, prompt: list[int], limit: int, *, chat: bool) -> list[int]:
        if self.cut_prompt == "end":
            if chat:
                raise ConfigurationError(
                    "cut_prompt='end' would cut off the end of a conversation's prompt, which opens the answer. Set "
                    "cut_prompt: start, or too_long: drop."
                )
            return prompt[:limit]
        kept = 1 if prompt[0] == self._bos and limit > 1 else 0
        return [*prompt[:kept], *prompt[len(prompt) - limit + kept :]]

    def _start(self) -> list[int]:
        """What stands before a text without prompt: BOS, else EOS, as language models are trained."""
        for candidate in (self._bos, self._eos):
            if candidate is not None:
                return [int(candidate)]
        raise InvalidRowError(
            "empty prompt", "it has no tokens, and the tokenizer has no BOS or EOS to start with"
        )

    def _end(self, ids: list[int], *, chat: bool) -> list[int]:
        assert self._eos is not None
        ends = self._specials if chat else {self._eos}
        if ids[-1] not in ends:
            if ends.isdisjoint(ids):
                return [*ids, self._eos]
            last = max(place for place, index in enumerate(ids) if index in ends)
            behind = tuple(ids[last + 1 :])
            # What is kept is no longer than the line breaks that templates put behind a turn.
            blank = self._blank if len(behind) <= 4 else {}
            if behind not in blank:
                blank[behind] = not str(self.tokenizer.decode(list(behind))).strip()
            if not blank[behind]:
                return [*ids, self._eos]
            ids = ids[: last + 1]
        while len(ids) > 1 and ids[-1] == ids[-2] == self._eos:
            ids = ids[:-1]
        return ids

    def _is_over(self, what: str, count: int, limit: int, *, can_cut: bool = True) -> bool:
        """Whether so many tokens must be cut to a limit; an error where they may not be."""
        cuts = self.too_long == "truncate" or (what, self.too_long) == ("prompt", "truncate_prompt")
        if count > limit and not (cuts and can_cut):
            raise TooLongError(f"{what} too long", f"{count} tokens, max_{what}_length is {limit}")
        return count > limit


@contextmanager
def _without_collection() -> Iterator[None]:
    """Many small lists make Python look for circles among all objects again and again; there are none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _no_text(record: Record) -> InvalidRowError:
    texts = [record.prompt, *record.completions]
    whole = [str(text).encode(errors="ignore").decode() == str(text) for text in texts]
    bad = texts[whole.index(False) if False in whole else 0]
    return InvalidRowError(
        "text that the tokenizer can't read",
        f"{str(bad)[:80]!r} holds half a character (a lone surrogate) or what the tokenizer refuses",
    )


class TextEncoder:
    """Turns texts into token ids.

    Args:
        tokenizer: Whose ids they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id
        self._added_at_end = _added_at_end(tokenizer)
        self._backend = _direct_backend(tokenizer)
        self._ask: Callable[[list[str], bool], list[list[int]]] = partial(
            ask_backend, self._backend
        )
        self._texts = 0

    def __call__(self, texts: Iterable[str], *, special: bool) -> dict[str, list[int] | None]:
        """Token ids of texts; None for what is no text, such as half a character.

        Args:
            texts: Whole texts.
            special: Whether BOS goes in front, if the tokenizer adds one. What it adds at the end is taken off: what
                ends a completion is decided elsewhere. A BOS that the text spells out itself is not doubled.
        """
        found: dict[str, list[int] | None] = {}
        for portion in _portions(dict.fromkeys(texts)):
            try:
                found.update(zip(portion, self._call(portion, special=special), strict=True))
            except Exception:  # noqa: BLE001  (of one text among many: each is asked for by itself)
                for text in portion:
                    try:
                        (found[text],) = self._call([text], special=special)
                    except Exception:  # noqa: BLE001  (tokenizers raise what they like)
                        found[text] = None
        return found

    def _call(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if self._backend is None or _cuts_or_pads(self._backend):  # somebody may have set it since
            batches = _call_tokenizer(self.tokenizer, texts, special)
        else:
            before, self._texts = self._texts, self._texts + len(texts)
            if before <= _FEW_TEXTS < self._texts:
                self._ask = find_pieces(self._backend) or self._ask
            batches = self._ask(texts, special)
        if special and self._added_at_end:
            batches = [ids[: -self._added_at_end] for ids in batches]
        if special and self._bos is not None:
            doubled = [self._bos, self._bos]
            batches = [ids[1:] if ids[:2] == doubled else ids for ids in batches]
        return batches


def _call_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool
) -> list[list[int]]:
    # verbose=False: texts longer than the model are no news here, the limits of the data decide.
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def _cuts_or_pads(backend: Any) -> bool:
    return backend.truncation is not None or backend.padding is not None


def _direct_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The Rust core of a tokenizer, which spares a quarter of the time, if it gives the same ids as the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or _cuts_or_pads(backend):
        return None
    probes = ["a", " a  b\n\n\tc. ", "naïve 🙂 ﬁ\u200d\r\n", "".join(tokenizer.all_special_tokens)]
    probes += [f"x{token} y" for token in tokenizer.all_special_tokens]
    for special in (False, True):
        if ask_backend(backend, probes, special) != _call_tokenizer(tokenizer, probes, special):
            return None
    return backend


def _added_at_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts behind a text of its own accord."""
    plain, whole = (
        list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    if not plain:
        return int(whole[-1:] == [tokenizer.eos_token_id])
    return len(around(plain, whole)[1])


def _portions(texts: Iterable[str]) -> Iterator[list[str]]:
    portion: list[str] = []
    size = 0
    for text in texts:
        portion.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
