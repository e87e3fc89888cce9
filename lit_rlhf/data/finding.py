"""The format of each of a DataModule's sources: found from its first rows where none is set, and said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data import recognition
from lit_rlhf.data.conversion import SUBSET, TEMPLATE_COLUMNS, Source
from lit_rlhf.data.formats import Format, group_rows
from lit_rlhf.data.recognition import Kind
from lit_rlhf.data.records import Record, Row, RowGroup, part_names, rows_of_group
from lit_rlhf.data.rows import TokenizedRows
from lit_rlhf.data.wrappers import PairsFromRanking, Wrapper
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option

Takes: TypeAlias = Mapping[Kind, type[Wrapper] | None]
"""The kinds that are taken, each as it is or through a wrapper; kinds that are taken as they are go first."""
_HEAD, _TAIL = 300, 200  # characters of a text that is shown
_IMITATE: dict[Kind, str] = {
    "pairs": "Set `format: ChosenOf({})` to imitate the preferred answers.",
    "rankings": "Set `format: ChosenOf(PairsFromRanking({}))` to imitate the better ones.",
    "unpaired": "Set `format: Demonstration()` to imitate all answers, whatever is said of them.",
}


@dataclass(frozen=True)
class Auto(Format):
    """The format that reads the first rows, found by a DataModule; the same as setting no format.

    Args:
        also: Formats of one's own that take part; one that reads the rows goes before the library's.

    Raises:
        ConfigurationError: One is no format.
    """

    also: list[Format] = field(default_factory=list)

    def __post_init__(self) -> None:
        also: object = self.also
        valid = isinstance(also, list) and all(isinstance(each, Format) for each in also)
        check_option(valid, self, "also", also, "a list of formats")

    def __call__(self, row: Row) -> list[Record]:
        """Refused: a row by itself doesn't say what the others are."""
        raise ConfigurationError(
            "Auto stands for a format that a DataModule finds, and reads no rows by itself. Inside another format, "
            "name the format: ChosenOf(ImplicitPrompt()); `lit-rlhf data show FILE` says which it is."
        )


@dataclass
class FormatFinder:
    """Finds the format of each source from its first rows.

    Args:
        auto: Says which formats take part beside the library's.
        takes: The kinds that the DataModule takes.
        usual: Its usual format, which reads a source without rows.
        module: What messages call the DataModule.
    """

    auto: Auto
    takes: Takes
    usual: Format
    module: str
    found: dict[int, Format] = field(default_factory=dict, init=False)

    def find(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> Format:
        """The format of a source.

        Args:
            source: The DataModule's own, which lives as long as this.
            tokenizer: Whether it has a chat template decides how conversations are laid out.

        Raises:
            ConfigurationError: No format reads the rows, or several do.
        """
        if id(source) not in self.found:
            rows, layout = recognition.first_rows(source), recognition.layout_for(tokenizer)
            self.found[id(source)] = self._choose(rows, str(source), layout) if rows else self.usual
        return self.found[id(source)]

    def _choose(self, rows: Sequence[Row], what: str, layout: recognition.Layout) -> Format:
        """The one format of rows that the DataModule takes.

        Where none fits and rows with all columns of its usual format can't be read by it, that one is taken: what is
        wrong with the rows is then counted by reason.
        """
        found = recognition.readings(rows, self.auto.also, layout)
        direct = [one for one in found if self.takes.get(one.kind, Wrapper) is None]
        fitting = direct or [one for one in found if one.kind in self.takes]
        if len(fitting) == 1:
            return self._wrapped(fitting[0])
        if fitting:
            readers = [(recognition.spell(self._wrapped(one)), one.kind) for one in fitting]
            raise ConfigurationError(recognition.several_readers(readers, rows, what))
        others = [one for one in found if one.kind != "prompts"]
        named = [row for row in rows if all(name in row for name in self.usual.reads())]
        # One that does read them gave way to a reading that says more.
        if named and not (others and any(map(self.usual.reads_row, named))):
            return self.usual
        columns = recognition.columns_of(rows)
        wanted = [kind for kind, wrapper in self.takes.items() if wrapper is None]
        if others:
            kind, name = others[0].kind, recognition.spell(others[0].format)
            module = recognition.MODULES[kind]
            way = _IMITATE.get(kind, "").format(name) if wanted[0] == "demonstrations" else ""
            if not way and (found_way := recognition.proposal(rows, wanted, "--data.format")):
                way = f"Or, if their names mean what they say, add {found_way}."
            raise ConfigurationError(
                f"The rows of {what} are {kind}, read by {name}, and {self.module} needs {wanted[0]}. Take {module} "
                f"for them (--data.class_path {module}), with a module or loss for {kind}. {way}{way and ' '}"
                f"Their columns: {columns}."
            )
        raise ConfigurationError(
            f"No format reads the rows of {what} as {self.module} needs them. Their columns: {columns}. "
            f"{recognition.way_to_read(rows, wanted, '--data.format', self.usual)}"
        )

    def _wrapped(self, reading: recognition.Reading) -> Format:
        """The format of a reading, through what makes of its records the kind that is wanted."""
        wrapper = self.takes.get(reading.kind)
        if wrapper is PairsFromRanking:
            return PairsFromRanking(reading.format, with_margin=False)
        return reading.format if wrapper is None else wrapper(reading.format)


def say_found(
    source: Source, reader: Format, rows: TokenizedRows, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Say, in one process, which format was found, what it leaves unread, and the first row as a model will see it."""
    if len(rows) == 0:
        return
    row, unread = rows[0], unread_columns(reader, recognition.first_rows(source))
    lines = [
        f"{source} is read as {recognition.spell(reader)}. Its first row as the model will see it:"
    ]
    parts = [row["prompt_ids"], *row["completion_ids"]]
    names = part_names(row["fields"], len(parts) - 1)
    for name, ids in zip(names, parts, strict=False):  # steps that were too long are cut off
        lines.append(f"  {name}: {_line(str(tokenizer.decode(ids)))}")
    if unread:
        lines.append(f"  columns that are not read: {', '.join(unread)}")
    if {"score_chosen", "score_rejected"} <= {*unread}:
        lines.append(
            "  the difference of the scores becomes the margin with the format's options "
            "chosen_score: score_chosen, rejected_score: score_rejected"
        )
    rank_zero_info("\n".join(lines))


def _line(text: str) -> str:
    text = text.replace("\n", "\\n")
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]} [... {len(text) - _HEAD - _TAIL} characters ...] {text[-_TAIL:]}"


def unread_columns(reader: Format, rows: Sequence[Row]) -> list[str]:
    """The columns of the first row that a format takes which it doesn't look at."""
    for row in group_rows(rows, reader):
        if reader.reads_row(row):
            watched = [_Watched(each) for each in rows_of_group(row)]
            records = reader(RowGroup(watched) if isinstance(row, RowGroup) else watched[0])
            seen = watched[0].seen | ({SUBSET} if records[0].completions else set())
            return [name for name in row if name not in seen]
    return []


class _Watched(dict[str, Any]):
    """A row that remembers which of its columns were looked at."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.seen = {*TEMPLATE_COLUMNS}  # whatever the format

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        return super().get(name, default)
