"""Formats around formats: pairs to single examples, rankings to pairs, plain text to conversations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_rlhf.data.formats import (
    TRANSCRIPT_MARKER,
    TRANSCRIPT_QUESTION,
    Format,
    carried_columns,
    check_columns,
)
from lit_rlhf.data.records import (
    CALLS,
    InvalidRowError,
    Message,
    Record,
    Row,
    Text,
    ordered_pairs,
    ratings_by_answer,
)
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option, is_text


@dataclass(frozen=True)
class Wrapper(Format):
    """A format around another one.

    Args:
        format: Gives the records that this one changes.

    Raises:
        ConfigurationError: `format` is none.
    """

    format: Format

    @property
    def innermost(self) -> Format:
        """That of the format within."""
        return self.format.innermost

    def __post_init__(self) -> None:
        check_option(isinstance(self.format, Format), self, "format", self.format, "a Format")

    def groups_by(self) -> str | None:
        """What the format within groups by."""
        return self.format.groups_by()

    def votes(self, row: Row) -> Sequence[float]:
        """Those that the format within finds."""
        return self.format.votes(row)

    def pairs(self, row: Row) -> list[Record]:
        """The records of `format`, which must be pairs, the preferred completion first.

        Where a record says by `p_chosen` or `margin` that the second one is preferred, they change places.

        Raises:
            ConfigurationError: They are no pairs: what comes first in them is not what is preferred.
            InvalidRowError: Neither completion is preferred.
        """
        return [self._ordered(record) for record in self.format(row)]

    def _ordered(self, record: Record) -> Record:
        name = type(self).__name__
        if record.steps or len(record.completions) != 2 or {"score", "label"} & set(record.fields):
            inner = f"{name}(PairsFromRanking(...))" if "score" in record.fields else f"{name}(...)"
            raise ConfigurationError(
                f"{name} needs a format that gives pairs, {type(self.format).__name__} gives records with "
                f"{len(record.completions)} completions and the fields {sorted(record.fields)}, whose first is not the "
                f"preferred one by its place. Use {inner} around pairs, such as those of ExplicitPrompt."
            )
        p_chosen, margin = record.p_chosen, record.fields.get("margin")
        if p_chosen == 0.5 or record.completions[0] == record.completions[1]:
            raise InvalidRowError("pair of equals", "neither completion is preferred")
        if p_chosen < 0.5 or (isinstance(margin, float | int) and margin < 0):
            fields = dict(record.fields)
            if "attributes" in fields:
                first, second = ratings_by_answer(fields, 2)
                fields["attributes"] = (*second, *first)
            return replace(record, completions=record.completions[::-1], fields=fields)
        return record


@dataclass(frozen=True)
class AsChat(Wrapper):
    """Plain text as a conversation: the prompt becomes the user's turn, each completion the assistant's.

    A prompt that is a transcript, as in HH-RLHF, becomes the turns that its markers part. The steps of a solution stay
    text: they are parts of one turn. What is messages already stays as it is.

    Args:
        format: Gives records of plain text.
        system: A system turn to put in front, where the prompt has none. None: no system turn.

    Example:
        >>> from lit_rlhf.data import ExplicitPrompt
        >>> row = {"prompt": "hi", "chosen": "hello", "rejected": "go"}
        >>> AsChat(ExplicitPrompt())(row)[0].prompt
        [{'role': 'user', 'content': 'hi'}]
    """

    system: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = self.system is None or is_text(self.system)
        check_option(valid, self, "system", self.system, "text or left out")

    def __call__(self, row: Row) -> list[Record]:
        """The same records, with messages for text."""
        return [self.convert(record) for record in self.format(row)]

    def convert(self, record: Record) -> Record:
        """A record with messages for text.

        Raises:
            InvalidRowError: It has no prompt.
        """
        if not record.prompt:
            raise InvalidRowError(
                "text without prompt",
                "it has no user's turn; leave AsChat out to train on plain text",
            )
        prompt = _transcript_turns(record.prompt) or _turn("user", record.prompt)
        if self.system is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": self.system}, *prompt]
        completions = record.completions
        if not record.steps:
            marked = isinstance(record.prompt, str) and record.prompt.endswith(TRANSCRIPT_MARKER)
            texts = [c.strip() if marked and isinstance(c, str) else c for c in completions]
            completions = tuple(_turn("assistant", text) for text in texts)
        return replace(record, prompt=prompt, completions=completions)


@dataclass(frozen=True)
class AsTranscript(Wrapper):
    r"""Conversations as plain text, for a tokenizer without a chat template: HH-RLHF's transcripts.

    Turns get the markers `\n\nHuman:` and `\n\nAssistant:`, system turns stand in front as they are, and an answer
    begins with a space. Plain text is taken for a user's turn; what has the markers already stays as it is.

    Args:
        format: Gives records of messages, or of plain text.

    Example:
        >>> from lit_rlhf.data import Demonstration
        >>> AsTranscript(Demonstration())({"prompt": "hi", "completion": "hello"})[0].prompt
        '\n\nHuman: hi\n\nAssistant:'
    """

    def __call__(self, row: Row) -> list[Record]:
        """The same records, with text for messages."""
        return [self.convert(record) for record in self.format(row)]

    def convert(self, record: Record) -> Record:
        """A record with text for messages.

        Raises:
            InvalidRowError: A turn has no place in a transcript.
        """
        if isinstance(record.prompt, str) and TRANSCRIPT_MARKER in record.prompt:
            return record
        texts = [_transcript(turn) for turn in _turn("user", record.prompt)]
        first = record.completions[:1] if record.steps else record.completions
        answers = [f" {_answer(completion)}" for completion in first]
        completions = (*answers, *record.completions[len(answers) :])
        return replace(record, prompt="".join(texts) + TRANSCRIPT_MARKER, completions=completions)


@dataclass(frozen=True)
class PromptsOf(Wrapper):
    """The prompts of other data, such as those of preference pairs, to roll out from.

    Args:
        format: Gives the records whose prompts are taken.
        columns: Which columns of the rows are carried to the rewards. None: all of them.
    """

    columns: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self, self.columns)

    def __call__(self, row: Row) -> list[Record]:
        """Records without completions."""
        kept = carried_columns(row, self.columns)
        records = self.format(row)
        return [Record(each.prompt, columns=kept, template=each.template) for each in records]


@dataclass(frozen=True)
class ChosenOf(Wrapper):
    """The preferred completions of pairs, as demonstrations; where `p_chosen` or `margin` say so, the second ones."""

    def __call__(self, row: Row) -> list[Record]:
        """Records with the preferred completion alone."""
        pairs = self.pairs(row)
        return [replace(each, completions=each.completions[:1], fields={}) for each in pairs]


@dataclass(frozen=True)
class UnpairedFromPairs(Wrapper):
    """Each pair as two single examples: the preferred one desirable, the other not."""

    def __call__(self, row: Row) -> list[Record]:
        """Two records per pair, with the field `label`, and each with its own ratings."""
        return [
            replace(
                record,
                completions=(completion,),
                fields={"label": label} | ({"attributes": tuple(rated)} if rated else {}),
            )
            for record in self.pairs(row)
            for completion, label, rated in zip(
                record.completions, (True, False), ratings_by_answer(record.fields, 2), strict=True
            )
        ]


@dataclass(frozen=True)
class PairsFromRanking(Wrapper):
    """Each ranking as all its pairs whose scores differ; the margin is the difference.

    The pairs of one prompt are correlated: a model that sees them in several steps overfits (arXiv 2203.02155). Where
    the loss takes lists, feed the ranking itself.

    Args:
        format: Gives rankings, records with the field `score`.
        with_margin: Whether the difference of scores goes into the field `margin`.
    """

    with_margin: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = isinstance(self.with_margin, bool)
        check_option(valid, self, "with_margin", self.with_margin, "true or false")

    def __call__(self, row: Row) -> list[Record]:
        """Up to K (K - 1) / 2 records with two completions."""
        pairs = [pair for record in self.format(row) for pair in self._pairs(record)]
        if not pairs:
            raise InvalidRowError(
                "ranking of ties", "all scores are equal, so no completion is preferred"
            )
        return pairs

    def _pairs(self, record: Record) -> list[Record]:
        scores = record.fields.get("score")
        if not isinstance(scores, tuple):
            raise ConfigurationError(
                f"PairsFromRanking needs a format that gives rankings, {type(self.format).__name__} gives records with "
                f"the fields {sorted(record.fields)}. Use Ranked, or the format alone if it gives pairs."
            )
        answers = record.completions
        return [
            replace(
                record,
                completions=(answers[better], answers[worse]),
                fields={"margin": margin} if self.with_margin else {},
            )
            for better, worse, margin in ordered_pairs(scores)
        ]


def _transcript_turns(prompt: Text) -> list[Message]:
    """The turns of a transcript that ends where an answer is to follow; none where the text is no transcript."""
    if not isinstance(prompt, str) or not prompt.endswith(TRANSCRIPT_MARKER):
        return []
    before, *parts = prompt.removesuffix(TRANSCRIPT_MARKER).split(TRANSCRIPT_QUESTION)
    if not parts:
        return []
    turns = list(_turn("system", before.strip())) if before.strip() else []
    for part in parts:
        question, *answers = part.split(TRANSCRIPT_MARKER)
        turns += _turn("user", question.strip())
        turns += [turn for answer in answers for turn in _turn("assistant", answer.strip())]
    return turns


def _transcript(turn: Message) -> str:
    markers = {"system": "", "user": TRANSCRIPT_QUESTION, "assistant": TRANSCRIPT_MARKER}
    if turn["role"] not in markers:
        raise _no_place(f"its role is {turn['role']!r}")
    return f"{markers[turn['role']]} {_said(turn)}" if turn["role"] != "system" else _said(turn)


def _answer(completion: Text) -> str:
    if isinstance(completion, str):
        return completion.lstrip(" ")
    return "".join(map(_said, completion))


def _said(turn: Message) -> str:
    if turn.get(CALLS):
        raise _no_place(f"it has {CALLS}")
    return str(turn["content"])


def _no_place(why: str) -> InvalidRowError:
    way = "take the tokenizer of a chat model, whose template knows it"
    return InvalidRowError("a transcript has no place for a turn", f"{why}; {way}")


def _turn(role: str, text: Text) -> Sequence[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
