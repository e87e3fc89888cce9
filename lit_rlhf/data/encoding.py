"""From records to token ids.

The tokens of a prompt are those of the prompt alone: what a rollout from it starts with, and the same for all its
completions. The tokens of a completion are what follows them in the tokens of prompt and completion together; where the
tokenizer would merge across the seam, the completion is tokenized by itself.

With messages, prompt and whole conversation are rendered by the chat template (the prompt with its generation prompt)
and what the conversation's text adds is the completion. Templates that render a prompt otherwise once an answer follows
(some insert or drop a thinking block) leave no such suffix: then prompt and completions part at the longest common
prefix of the renderings' tokens, and the row is counted in `Encoder.cut_prompts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.asking import Asking, Ids, ids_of, together
from lit_rlhf.data.records import InvalidRowError, Message, Record, TooLongError
from lit_rlhf.data.tokenizers import special_token_ids, start_token_id
from lit_rlhf.errors import ConfigurationError

_ANCHOR = "\n"


class Encoded(NamedTuple):
    """Token ids of a record."""

    prompt: list[int]
    completions: list[list[int]]


@dataclass
class Encoder:
    """Tokenizes records, ends completions with EOS and keeps to length limits.

    A call tokenizes one record; `encode` lets many records share calls of the tokenizer, with the same result.

    A completion of plain text gets EOS when it lacks one. Of a conversation the template decides; what it puts after
    the last special token (often a line break) is cut off, since a rollout ends there, and EOS is added if no special
    token ends the turn. An empty prompt becomes the start token (BOS, else EOS).

    Args:
        tokenizer: The tokenizer.
        max_prompt_length: Most tokens of a prompt. None: no limit.
        max_completion_length: Most tokens of a completion, EOS included. None: no limit.
        truncate: Cut what is too long: prompts from the left (a BOS stays), completions from the right (EOS goes).
            False: raise.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    truncate: bool = False
    cut_prompts: int = field(default=0, init=False)
    _eos: int | None = field(init=False, repr=False)
    _specials: frozenset[int] = field(init=False, repr=False)
    _template_checked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self._eos = self.tokenizer.eos_token_id
        self._specials = special_token_ids(self.tokenizer)

    def __call__(self, record: Record) -> Encoded:
        """Tokenize one record; see `encode`."""
        return together(self.tokenizer, [self.encode(record)])[0]

    def encode(self, record: Record) -> Asking[Encoded]:
        """Tokenize one record, for `asking.together`.

        Raises:
            InvalidRowError: A completion has no tokens, or the chat template refuses the conversation.
            TooLongError: Over a limit, and `truncate` is off.
            ConfigurationError: The tokenizer lacks an EOS token or a chat template with a generation prompt.
        """
        if record.completions and self._eos is None:
            raise ConfigurationError(
                f"The tokenizer {self.tokenizer.name_or_path!r} has no EOS token, so completions would have no end. "
                "Set tokenizer.eos_token and save the tokenizer again."
            )
        if record.steps:
            return (yield from self._steps(record))
        encoded = yield from (
            self._plain(record) if isinstance(record.prompt, str) else self._chat(record)
        )
        if any(not completion for completion in encoded.completions):
            raise InvalidRowError("empty completion", "a completion has no tokens")
        ended = [
            self._end(completion, chat=not isinstance(record.prompt, str))
            for completion in encoded.completions
        ]
        return Encoded(
            self._limit_prompt(encoded.prompt),
            [self._limit_completion(completion) for completion in ended],
        )

    def _steps(self, record: Record) -> Asking[Encoded]:
        """Each step is tokenized by itself, so that it ends at a token; steps that don't fit whole are cut off."""
        if isinstance(record.prompt, str):
            prompt = (yield from self._join(record.prompt, [], special=True)).prompt
        else:
            prompt = (yield from self._chat(Record(record.prompt))).prompt
        steps = yield from _continuations([str(step) for step in record.completions])
        if not all(steps):
            raise InvalidRowError("empty completion", "a step has no tokens")
        steps[-1] = self._end(steps[-1], chat=False)
        limit = self.max_completion_length
        if limit is not None and sum(map(len, steps)) > limit:
            fitting = sum(total <= limit for total in accumulate(map(len, steps)))
            if not self.truncate or fitting == 0:
                raise TooLongError(
                    "completion too long",
                    f"{sum(map(len, steps))} tokens, max_completion_length is {limit}",
                )
            steps = steps[:fitting]
        return Encoded(self._limit_prompt(prompt), steps)

    def _plain(self, record: Record) -> Asking[Encoded]:
        completions = [str(completion) for completion in record.completions]
        return (yield from self._join(str(record.prompt), completions, special=True))

    def _join(self, prompt: str, completions: list[str], *, special: bool) -> Asking[Encoded]:
        first, *joint = yield from ids_of(
            [prompt, *(prompt + c for c in completions)], special=special
        )
        head = first or self._start()
        goes_on = [ids[: len(first)] == first for ids in joint]
        apart = [text for text, fits in zip(completions, goes_on, strict=True) if not fits]
        alone = iter((yield from _continuations(apart)) if apart else [])
        tails = [
            ids[len(first) :] if fits else next(alone)
            for ids, fits in zip(joint, goes_on, strict=True)
        ]
        return Encoded(head, tails)

    def _start(self) -> list[int]:
        start = start_token_id(self.tokenizer)
        if start is None:
            raise InvalidRowError(
                "empty prompt",
                "it has no tokens, and the tokenizer has no BOS or EOS to start with",
            )
        return [start]

    def _chat(self, record: Record) -> Asking[Encoded]:
        turns = _messages(record.prompt)
        if record.completions and turns[-1]["role"] == "assistant":
            raise InvalidRowError(
                "prompt ends in an answer", "its last message has the role 'assistant'"
            )
        prompt = self._render(turns, open_turn=True)
        self._check_generation_prompt(turns, prompt)
        wholes = [
            self._render([*turns, *_messages(completion)], open_turn=False)
            for completion in record.completions
        ]
        if all(whole.startswith(prompt) for whole in wholes):
            return (
                yield from self._join(
                    prompt, [whole[len(prompt) :] for whole in wholes], special=False
                )
            )
        self.cut_prompts += 1
        ids = yield from ids_of([prompt, *wholes], special=False)
        length = _common_length(ids)
        if length == 0:
            raise InvalidRowError(
                "chat template renders no common prompt", "prompt and conversation share no token"
            )
        return Encoded(ids[0][:length], [whole[length:] for whole in ids[1:]])

    def _render(self, turns: Sequence[Message], *, open_turn: bool) -> str:
        # A prompt that ends in the assistant's words is gone on with; any other is answered in a turn of its own.
        goes_on = open_turn and turns[-1]["role"] == "assistant"
        if self.tokenizer.chat_template is None:
            raise ConfigurationError(
                f"The rows hold messages, and the tokenizer {self.tokenizer.name_or_path!r} has no chat template to "
                "render them with. Set tokenizer.chat_template, take the tokenizer of a chat model, or give plain text."
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                add_generation_prompt=open_turn and not goes_on,
                continue_final_message=goes_on,
            )
        except TemplateError as error:
            roles = [turn["role"] for turn in turns]
            raise InvalidRowError(
                "chat template refuses the messages", f"{error} (roles: {roles})"
            ) from error
        return str(text)

    def _check_generation_prompt(self, turns: Sequence[Message], prompt: str) -> None:
        if self._template_checked or turns[-1]["role"] == "assistant":
            return
        if prompt == self._render(turns, open_turn=False):
            raise ConfigurationError(
                f"The chat template of the tokenizer {self.tokenizer.name_or_path!r} has no generation prompt: with "
                "add_generation_prompt it renders the same, so an answer would have no beginning. Give the tokenizer a "
                "template that handles `add_generation_prompt`, or give plain-text columns."
            )
        self._template_checked = True

    def _end(self, ids: list[int], *, chat: bool) -> list[int]:
        assert self._eos is not None
        if chat:
            last = max(
                (place for place, index in enumerate(ids) if index in self._specials), default=-1
            )
            if last >= 0 and not str(self.tokenizer.decode(ids[last + 1 :])).strip():
                return ids[: last + 1]
        return ids if ids[-1] == self._eos else [*ids, self._eos]

    def _limit_prompt(self, ids: list[int]) -> list[int]:
        limit = self.max_prompt_length
        if limit is None or len(ids) <= limit:
            return ids
        if not self.truncate:
            raise TooLongError(
                "prompt too long", f"{len(ids)} tokens, max_prompt_length is {limit}"
            )
        if ids[0] == self.tokenizer.bos_token_id and limit > 1:
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


def _continuations(texts: list[str]) -> Asking[Ids]:
    """Tokens of texts that go on from other text, so without the space that some tokenizers put at a start."""
    anchor, *anchored = yield from ids_of(
        [_ANCHOR, *(_ANCHOR + text for text in texts)], special=False
    )
    goes_on = [ids[: len(anchor)] == anchor for ids in anchored]
    others = [text for text, fits in zip(texts, goes_on, strict=True) if not fits]
    alone = iter((yield from ids_of(others, special=False)) if others else [])
    return [
        ids[len(anchor) :] if fits else next(alone)
        for ids, fits in zip(anchored, goes_on, strict=True)
    ]


def _common_length(lines: list[list[int]]) -> int:
    alike = (len(set(column)) == 1 for column in zip(*lines, strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _messages(text: object) -> Sequence[Message]:
    assert isinstance(text, Sequence)
    assert not isinstance(text, str)
    return text
