"""Which format rows are of: the table of all formats, and those that read the first rows.

The choice is a function of the first rows, the kind of data and whether the tokenizer has a chat template: the same in
each process and at each start. What is chosen is part of the cache's key.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data import formats
from lit_rlhf.data.conversion import Source, rows_of
from lit_rlhf.data.formats import Columns, Format, group_rows
from lit_rlhf.data.records import (
    InvalidRowError,
    Record,
    Row,
    UnreadableRow,
    shorten,
)
from lit_rlhf.data.wrappers import AsChat, AsTranscript, PromptsOf
from lit_rlhf.errors import ConfigurationError, DataError

FORMATS: tuple[type[Format], ...] = (
    formats.ExplicitPrompt,
    formats.ImplicitPrompt,
    formats.SharedPrefix,
    formats.PreferenceStrength,
    formats.PreferenceLabel,
    formats.SummaryComparison,
    formats.Ranked,
    formats.RatedAnswers,
    formats.RankedAnswers,
    formats.AnswerSets,
    formats.ConversationTree,
    formats.ConversationTreeRows,
    formats.Unpaired,
    formats.HelpSteer2Pairs,
    formats.HelpSteer2Ratings,
    formats.Steps,
    formats.PRM800K,
    formats.MathShepherd,
    formats.Alpaca,
    formats.Demonstration,
    formats.Conversation,
    formats.PlainText,
    formats.PromptOnly,
)
"""The formats that are tried."""
Kind = Literal["steps", "pairs", "rankings", "unpaired", "demonstrations", "text", "prompts"]
"""What records are; of several readings, the first of these says most."""
MODULES: dict[Kind, str] = {
    "steps": "ProcessDataModule",
    "pairs": "PreferenceDataModule",
    "rankings": "RankedDataModule",
    "unpaired": "UnpairedDataModule",
    "demonstrations": "DemonstrationDataModule",
    "text": "DemonstrationDataModule",
    "prompts": "PromptDataModule",
}
"""The DataModule of each kind."""
Layout = Literal["text", "chat", "transcript", "canonical"]
"""How text that is a conversation is read: as it stands, as messages, with the markers of transcripts, or as messages
where it is question and answers, and transcripts as they stand."""
_USUAL: dict[Kind, tuple[Columns, ...]] = {
    "steps": (formats.Steps(completions="steps"),),
    "pairs": (formats.ExplicitPrompt(), formats.PreferenceLabel()),
    "rankings": (formats.Ranked(), formats.Ranked(ranks="ranks")),
    "unpaired": (formats.Unpaired(), formats.Unpaired(score="score")),
    "demonstrations": (formats.Demonstration(), formats.Conversation()),
    "text": (formats.PlainText(),),
    "prompts": (formats.PromptOnly(),),
}
"""What data of one's own are tried as under other names of columns."""
_OTHER_NAMES = {
    "prompt": "question query instruction input prompt_text user context",
    "completion": "response answer output reply target solution assistant",
    "steps": "completions solution_steps reasoning_steps",
    "completions": "responses answers outputs candidates",
    "chosen": "better best preferred good accepted winner win positive chosen_response response_chosen",
    "rejected": "worse worst dispreferred bad loser lose negative rejected_response response_rejected",
    "score": "rating stars reward label quality",
    "scores": "ratings rewards",
    "ranks": "ranking",
    "label": "liked thumbs_up good",
    "labels": "step_labels winner preference preferred",
    "history": "prompt question query instruction input",
    "human_ref_A": "response_a answer_a completion_a output_a",
    "human_ref_B": "response_b answer_b completion_b output_b",
    "messages": "conversation conversations dialogue dialog turns chat",
    "text": "content document body",
}
"""What else columns are called. Such names are proposed, never taken: only those who made the data know."""
_ROWS = 64


class Reading(NamedTuple):
    """A format that reads the rows, and the first record that it makes of them."""

    format: Format
    record: Record

    @property
    def kind(self) -> Kind:
        """What its records are."""
        return kind_of(self.record)


def kind_of(record: Record) -> Kind:
    """What a record is."""
    if record.steps:
        return "steps"
    if not record.completions:
        return "prompts"
    if len(record.completions) == 1:
        if {"label", "score"} & record.fields.keys():
            return "unpaired"
        return "demonstrations" if record.prompt else "text"
    return "rankings" if "score" in record.fields else "pairs"


def first_rows(source: Source) -> list[Row]:
    """The rows that decide: the first of a source that can be read.

    Raises:
        DataError: The source can't be read.
    """
    return [row for row in islice(rows_of(source), _ROWS) if not isinstance(row, UnreadableRow)]


def some_rows(source: Source) -> list[Row]:
    """The rows that decide, of which there must be one.

    Raises:
        DataError: The source can't be read, holds no row, or none of the first in a readable form.
    """
    if rows := first_rows(source):
        return rows
    for row in rows_of(source):
        assert isinstance(row, UnreadableRow)  # or it would be among the first
        raise DataError(f"None of the first {_ROWS} rows of {source} can be read. {row.error}.")
    raise DataError(f"{source} holds no rows: there is nothing to read. Is it the right file?")


def layout_for(tokenizer: PreTrainedTokenizerBase | None) -> Layout:
    """How text that is a conversation is laid out for a tokenizer; as it stands where there is none."""
    if tokenizer is None:
        return "text"
    return "transcript" if tokenizer.chat_template is None else "chat"


def readings(
    rows: Sequence[Row], also: Sequence[Format] = (), layout: Layout = "text"
) -> list[Reading]:
    """The formats that read rows, without those that others make needless.

    A format gives way to one that reads its columns and more: labels beside prompts and answers say more than these
    alone. Prompts stay whatever else there is, but written as the other readings write them. Formats of one's own go
    before all others.

    Args:
        rows: The first rows.
        also: Formats of one's own.
        layout: How text that is a conversation is read.
    """
    if own := [_laid_out(one, layout) for one in _reading(also, rows)]:
        return own
    found = [*_reading([c for kind in FORMATS for c in kind.candidates()], rows)]
    found = [
        _laid_out(one, layout)
        for one in found
        if one.kind == "prompts" or not any(_says_more(other, one, rows) for other in found)
    ]
    return [_as_learned(one, found, rows) if one.kind == "prompts" else one for one in found]


def _laid_out(reading: Reading, layout: Layout) -> Reading:
    style = reading.format.style
    if layout == "text" or style == "text" or not isinstance(reading.record.prompt, str):
        return reading
    around: AsChat | AsTranscript | None = None
    if layout == "chat" or (layout == "canonical" and style == "turns"):
        around = AsChat(reading.format)
    elif layout == "transcript" and style == "turns":
        around = AsTranscript(reading.format)
    return reading if around is None else Reading(around, around.convert(reading.record))


def _as_learned(prompts: Reading, found: Sequence[Reading], rows: Sequence[Row]) -> Reading:
    """Prompts of the column `prompt`, written as the reading that says most of the rows writes them.

    A bare question beside a conversation, or beside answers that a chat template parts from it, isn't what a model has
    seen that learned of these rows. Where that conversation holds more than the question, its prompts are taken.
    """
    others = [one for one in found if one.record.prompt and one.kind not in ("prompts", "text")]
    if not others:
        return prompts
    learned = PromptsOf(min(others, key=lambda one: [*MODULES].index(one.kind)).format)
    own = prompts.format
    both = [r for r in group_rows(rows, learned) if learned.reads_row(r) and own.reads_row(r)]

    def agrees(reader: Format) -> bool:
        return all(
            reader.reads_row(row) and reader(row)[0].prompt == learned(row)[0].prompt
            for row in both
        )

    if agrees(own):
        return prompts
    reader = next(filter(agrees, (AsChat(own), AsTranscript(own))), learned)
    return Reading(reader, reader(both[0])[0])


def _reading(tried: Sequence[Format], rows: Sequence[Row]) -> Iterator[Reading]:
    for each in tried:
        found = [*group_rows(rows, each)]
        if found and each.recognises(found):
            yield Reading(each, next(each(row)[0] for row in found if each.reads_row(row)))


def _says_more(one: Reading, than: Reading, rows: Sequence[Row]) -> bool:
    """Whether it reads columns beside those of the other, or pairs with a `prompt` that is their only turn before."""
    if one.kind == "prompts":
        return False
    weaker = than.format.weak and not one.format.weak
    if weaker or set(one.format.reads()) > set(than.format.reads()):
        return True
    usual = formats.ExplicitPrompt()
    turns = [formats.ExplicitPrompt(prompt=name) for name in formats.TURN_COLUMNS]
    if one.format != usual or than.format not in turns:
        return False
    both = (row for row in rows if usual.reads_row(row) and than.format.reads_row(row))
    prompts = ((usual(row)[0].prompt, than.format(row)[0].prompt) for row in both)
    return all(turn in (asked, [{"role": "user", "content": asked}]) for asked, turn in prompts)


def read_as(
    rows: Sequence[Row],
    what: str,
    kind: Kind | None,
    format: Format | None,
    layout: Layout = "text",
) -> Reading:
    """The one reading of rows as a kind, whichever DataModule they are for.

    Args:
        rows: The first rows, one or more.
        what: What messages call them.
        kind: The kind. None: the first of `Kind` that they can be.
        format: The format that is set, if one is; it is taken as it stands.
        layout: How text that is a conversation is read.

    Raises:
        ConfigurationError: There is none, or there are several; or the format that is set reads no row.
    """
    if format is not None:
        grouped = [*group_rows(rows, format)]
        readable = next((row for row in grouped if format.reads_row(row)), grouped[0])
        try:
            return Reading(format, format(readable)[0])
        except InvalidRowError as error:
            raise ConfigurationError(f"{spell(format)} reads no row of {what}: {error}.") from error
    found = readings(rows, (), layout)
    kinds = [each for each in MODULES if any(one.kind == each for one in found)]
    wanted = kind or (kinds[0] if kinds else None)
    fitting = [one for one in found if one.kind == wanted]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        readers = [(spell(one.format), one.kind) for one in fitting]
        raise ConfigurationError(several_readers(readers, rows, what))
    if found:
        ways = ", ".join(f"{one.kind} (by {spell(one.format)})" for one in found)
        raise ConfigurationError(f"The rows of {what} are no {wanted}; they can be read as {ways}.")
    kinds = [*MODULES] if kind is None else [kind]
    raise ConfigurationError(
        f"No format reads the rows of {what}. Their columns: {columns_of(rows)}. "
        f"{way_to_read(rows, kinds, '--format')}"
    )


def several_readers(readers: Sequence[tuple[str, Kind]], rows: Sequence[Row], what: str) -> str:
    """Says that there is a choice to make."""
    names = "; ".join(f"{name} ({kind})" for name, kind in readers)
    return (
        f"The rows of {what} can be read in several ways: {names}. Set the option `format` to the one that is meant. "
        f"Their columns: {columns_of(rows)}."
    )


def spell(value: Any) -> str:
    """A format as Python writes it, without the options that are as they come.

    Example:
        >>> from lit_rlhf.data import PairsFromRanking, Ranked
        >>> spell(PairsFromRanking(Ranked(ranks="place")))
        "PairsFromRanking(Ranked(ranks='place'))"
    """
    if not isinstance(value, Format):
        return repr(value)
    options: list[str] = []
    reader: Any = value  # a dataclass, unless it is somebody's own
    for option in fields(reader) if is_dataclass(reader) else ():
        given = getattr(reader, option.name)
        if option.name == "format":
            options.append(spell(given))
        elif given != option.default and option.name != "also":
            options.append(f"{option.name}={spell(given)}")
    return f"{type(value).__name__}({', '.join(options)})"


def columns_of(rows: Sequence[Row]) -> str:
    """The names of all columns, as messages tell them."""
    return ", ".join(dict.fromkeys(chain.from_iterable(rows))) or "none"


def way_to_read(
    rows: Sequence[Row], kinds: Sequence[Kind], option: str, usual: Format | None = None
) -> str:
    """Says how rows that no format reads may be read: by the names that their columns have, or by what is nearest.

    Args:
        rows: The first rows.
        kinds: What they may be, the likeliest first.
        option: The option of the command line that sets the format.
        usual: The usual format of a DataModule, if they are for one.
    """
    if found := proposal(rows, kinds, option):
        return f"If their names mean what they say, add {found}."
    example = _USUAL[kinds[0] if len(kinds) == 1 else "pairs"][0]
    columns = [f.name for f in fields(example) if getattr(example, f.name) in example.reads()]
    names = " ".join(f"{option}.{name} COLUMN" for name in columns)
    return (
        f"Nearest: {nearest_formats(rows, usual)}. Set `format` to one of these with the names of your columns "
        f"({option} {type(example).__name__} {names}), or give a Format of your own."
    )


def proposal(rows: Sequence[Row], kinds: Sequence[Kind], option: str) -> str:
    """The options that would read rows if their columns are what their names say; empty where names say nothing."""
    for each in (each for kind in kinds for each in _USUAL[kind]):
        if (made := _renamed(each, rows)) is not None:
            changed = [f for f in fields(made) if getattr(made, f.name) != f.default]
            named = [f"{option}.{f.name} {shlex.quote(getattr(made, f.name))}" for f in changed]
            words = " ".join([option, type(made).__name__, *named])
            means = ""
            # Others count from 0, or mean the second by 1.
            if isinstance(made, formats.PreferenceLabel):
                means = (
                    f"; true or 1 in {made.label!r} then says that {made.first!r} is the better one"
                )
            return f"{words} (in Python format={spell(made)}{means})"
    return ""


def _renamed(format: Columns, rows: Sequence[Row]) -> Columns | None:
    """A format with the names that the rows seem to have for the columns that they lack, if it then reads them."""
    present = {name.lower(): name for row in rows for name in row}
    taken: dict[str, Any] = {}
    for option in fields(format):
        column = getattr(format, option.name)
        if column not in format.reads() or column in present.values():
            continue
        others = [column, *_OTHER_NAMES.get(column, "").split()]
        found = next((present[other] for other in others if other in present), None)
        if found is None:
            return None
        taken[option.name] = found
    made = replace(format, **taken)
    return made if made.recognises([*group_rows(rows, made)]) else None


def nearest_formats(rows: Sequence[Row], usual: Format | None) -> str:
    """The usual format and the two others that lack fewest columns, and what each lacks.

    Where none has a column of the rows, the formats of pairs and of demonstrations: they are what most data are.
    """
    present = {name for row in rows for name in row}
    tried = [candidate for kind in FORMATS for candidate in kind.candidates()]

    def distance(each: Format) -> tuple[bool, float]:
        return each != usual, len(set(each.reads()) - present) / len(each.reads())

    near = [each for each in tried if each == usual or distance(each)[1] < 1]
    if not near:
        near = [formats.ExplicitPrompt(), formats.Demonstration()]
    near.sort(key=distance)
    return "; ".join(_complaint(each, rows, present) for each in near[:3])


def _complaint(each: Format, rows: Sequence[Row], present: set[str]) -> str:
    needed = ", ".join(each.reads())
    missing = [name for name in each.reads() if name not in present]
    if missing:
        return f"{spell(each)} reads {needed} (missing: {', '.join(missing)})"
    for row in group_rows(rows, each):
        try:
            each(row)
        except (InvalidRowError, ConfigurationError) as error:
            return f"{spell(each)} reads {needed}, but {error}"
        except (TypeError, LookupError, AttributeError):
            return f"{spell(each)} reads {needed}, but not such values as {shorten(dict(row))}"
    return f"{spell(each)} reads {needed}"
