"""From records to token ids.

The tokens of a prompt are those of the prompt alone: what a rollout from it starts with, and the same for all its
completions. The tokens of a completion are what follows them in the tokens of prompt and completion together; where the
tokenizer would merge across the seam, the completion is tokenized by itself.

With messages, prompt and whole conversation are rendered by the chat template (the prompt with its generation prompt)
and what the conversation's text adds is the completion. Templates that render a prompt otherwise once an answer follows
(some insert or drop a thinking block) leave no such suffix: then prompt and completions part at the longest common
prefix of the renderings' tokens, and the row is counted in `Encoder.cut_prompts`.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.chat import ChatRenderer, Rendered
from lit_rlhf.data.pieces import ask_backend, find_pieces
from lit_rlhf.data.records import InvalidRowError, Record, TooLongError
from lit_rlhf.errors import ConfigurationError

_ANCHOR = "\n"
_CHARACTERS_AT_ONCE = 200_000  # a tokenizer's own records of a text take some hundred bytes a token
_FEW_TEXTS = 5000  # before it pays to look for a faster way


class Encoded(NamedTuple):
    """Token ids of a record."""

    prompt: list[int]
    completions: list[list[int]]


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
        truncate: Cut what is too long: prompts from the left (a BOS stays), completions from the right (EOS goes).
            False: such records are not encoded.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    truncate: bool = False
    cut_prompts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._eos = self.tokenizer.eos_token_id
        self._bos = self.tokenizer.bos_token_id
        self._specials = special_token_ids(self.tokenizer)
        self._added_at_end = _added_at_end(self.tokenizer)
        self._chat = ChatRenderer(self.tokenizer)
        self._backend = _direct_backend(self.tokenizer)
        self._ask: Callable[[list[str], bool], list[list[int]]] = partial(
            ask_backend, self._backend
        )
        self._texts = 0
        self._blank: dict[tuple[int, ...], bool] = {}

    def __call__(self, record: Record) -> Encoded:
        """Tokenize one record.

        Raises:
            InvalidRowError: A completion has no tokens, or the chat template refuses the conversation.
            TooLongError: Over a limit, and `truncate` is off.
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
            return self._encode(records)

    def _encode(self, records: Sequence[Record]) -> list[Encoded | InvalidRowError]:
        works: list[_Work | InvalidRowError] = [
            texts if isinstance(texts, InvalidRowError) else _Work(record, texts)
            for record, texts in zip(records, self._render(records), strict=True)
        ]
        for stage in (self._tokenize, self._tokenize_apart):
            stage(works)
        return [work if isinstance(work, InvalidRowError) else self._finish(work) for work in works]

    # -- text ---------------------------------------------------------------------------------------------------------

    def _render(self, records: Sequence[Record]) -> list[Rendered | InvalidRowError]:
        chats = iter(self._chat([r for r in records if not isinstance(r.prompt, str)]))
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
        ids = {
            chat: self._ids(
                (
                    text
                    for w in live
                    if w.is_chat is chat
                    for text in (w.texts.prompt, *w.texts.wholes)
                ),
                special=not chat,
            )
            for chat in (False, True)
        }
        for place, work in enumerate(works):
            if isinstance(work, _Work):
                found = ids[work.is_chat]
                lines = [found[text] for text in (work.texts.prompt, *work.texts.wholes)]
                sound = [line for line in lines if line is not None]
                works[place] = (
                    self._part(work, sound) if len(sound) == len(lines) else _no_text(work.record)
                )

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
            size = _common_length(lines)
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

    def _ids(self, texts: Iterable[str], *, special: bool) -> dict[str, list[int] | None]:
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
            batches = self._call_backend(texts, special)
        if special and self._added_at_end:
            batches = [ids[: -self._added_at_end] for ids in batches]
        if special and self._bos is not None:
            doubled = [self._bos, self._bos]
            batches = [ids[1:] if ids[:2] == doubled else ids for ids in batches]
        return batches

    def _call_backend(self, texts: list[str], special: bool) -> list[list[int]]:
        before, self._texts = self._texts, self._texts + len(texts)
        if before <= _FEW_TEXTS < self._texts:
            self._ask = find_pieces(self._backend) or self._ask
        return self._ask(texts, special)

    # -- ends and limits ----------------------------------------------------------------------------------------------

    def _finish(self, work: _Work) -> Encoded | InvalidRowError:
        try:
            prompt = self._limit_prompt(work.prompt or self._start())
            tails = [tail for tail in work.tails if not isinstance(tail, str)]
            if not all(tails):
                what = "a step" if work.record.steps else "a completion"
                return InvalidRowError("empty completion", f"{what} has no tokens")
            if work.record.steps:
                tails[-1] = self._end(tails[-1], chat=False)
                return Encoded(prompt, self._fitting(tails))
            ended = [self._end(tail, chat=work.is_chat) for tail in tails]
            return Encoded(prompt, [self._limit_completion(tail) for tail in ended])
        except InvalidRowError as error:
            return error

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
            if not self._is_blank(tuple(ids[last + 1 :])):
                return [*ids, self._eos]
            ids = ids[: last + 1]
        while len(ids) > 1 and ids[-1] == ids[-2] == self._eos:
            ids = ids[:-1]
        return ids

    def _is_blank(self, ids: tuple[int, ...]) -> bool:
        if len(ids) > 4:  # more than the line breaks that templates put behind a turn
            return not str(self.tokenizer.decode(list(ids))).strip()
        if ids not in self._blank:
            self._blank[ids] = not str(self.tokenizer.decode(list(ids))).strip()
        return self._blank[ids]

    def _fitting(self, steps: list[list[int]]) -> list[list[int]]:
        limit, totals = self.max_completion_length, list(accumulate(map(len, steps)))
        if limit is None or totals[-1] <= limit:
            return steps
        fitting = sum(total <= limit for total in totals)
        if not self.truncate or fitting == 0:
            raise TooLongError(
                "completion too long", f"{totals[-1]} tokens, max_completion_length is {limit}"
            )
        return steps[:fitting]

    def _limit_prompt(self, ids: list[int]) -> list[int]:
        limit = self.max_prompt_length
        if limit is None or len(ids) <= limit:
            return ids
        if not self.truncate:
            raise TooLongError(
                "prompt too long", f"{len(ids)} tokens, max_prompt_length is {limit}"
            )
        if ids[0] == self._bos and limit > 1:
            return [ids[0], *ids[len(ids) - limit + 1 :]]
        return ids[len(ids) - limit :]

    def _limit_completion(self, ids: list[int]) -> list[int]:
        limit = self.max_completion_length
        if limit is None or len(ids) <= limit:
            return ids
        if not self.truncate:
            raise TooLongError(
                "completion too long", f"{len(ids)} tokens, max_completion_length is {limit}"
            )
        return ids[:limit]


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: end of a turn, BOS, EOS and the like."""
    added = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {int(index) for index in tokenizer.all_special_ids})


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


def _added_at_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the tokenizer puts behind a text of its own accord."""
    plain, whole = (
        list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    if not plain:
        return int(whole[-1:] == [tokenizer.eos_token_id])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return len(whole) - len(plain) - start
    return 0


def _common_length(lines: list[list[int]]) -> int:
    alike = (len(set(column)) == 1 for column in zip(*lines, strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _no_text(record: Record) -> InvalidRowError:
    texts = [record.prompt, *record.completions]
    bad = next((text for text in texts if _broken(text)), texts[0])
    return InvalidRowError(
        "text that the tokenizer can't read",
        f"{str(bad)[:80]!r} holds half a character (a lone surrogate) or what the tokenizer refuses",
    )


def _broken(text: object) -> bool:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return True
    return False


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
