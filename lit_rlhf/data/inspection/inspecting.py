"""The way through the data: held-out sets first, then each split once, with everything that looks at its records."""

import heapq
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.conversion import Source, rows_of
from lit_rlhf.data.formats import Format
from lit_rlhf.data.inspection.doubles import DoubleFacts, Doubles, Near, NearFacts
from lit_rlhf.data.inspection.endings import TextFacts, Texts, TokenFacts, Tokens
from lit_rlhf.data.inspection.items import Item, Reader
from lit_rlhf.data.inspection.labels import LabelFacts, Labels
from lit_rlhf.data.inspection.leakage import HeldOut, Leak, Leakage, texts_of
from lit_rlhf.data.inspection.lengths import LengthFacts, Lengths
from lit_rlhf.data.inspection.words import hash_words
from lit_rlhf.data.recognition import Kind, layout_for, read_as, some_rows, spell
from lit_rlhf.data.records import Record, Text, part_names, shown_turn
from lit_rlhf.data.sources import DirectorySource, local_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option, is_number, is_whole
from lit_rlhf.seeding import stable_hash

Data: TypeAlias = Source | str | Path
_MOST_CHARACTERS = 4000
_PLACES = 1 << 16  # records of one row


@dataclass(frozen=True)
class Shown:
    """A record as text.

    Args:
        where: File and row.
        fields: Its labels.
        texts: Prompt and answers, with what they are called; long ones are cut.
    """

    where: str
    fields: Mapping[str, Any]
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class SplitFacts:
    """What was found in one split.

    Args:
        name: train, val or the like.
        source: Where its rows come from.
        format: The format that read them.
        kind: What they are.
        unit: What a record is called, in the plural.
        rows: Rows read.
        records: Records used.
        left_out: Records left out, by reason.
        first_left_out: By reason, the first of them.
        by: Column that says where a row comes from; empty: none does.
        left_out_by: Records left out, by what their row says it comes from.
        lengths: Of prompts and answers.
        labels: What they say.
        doubles: Records that occur twice or are contradicted.
        near: Records that are nearly the same; None: they weren't looked for.
        texts: Signs that texts went wrong.
        tokens: Signs that tokens went wrong; None without a tokenizer.
        samples: Some records, drawn by a hash.
        extremes: The records with the longest and the shortest answers.
        repeated: Some records that occur again.
        contradicting: Some records and the ones that contradict them.
        nearly: Some records and ones that are nearly the same.
    """

    name: str
    source: str
    format: str
    kind: Kind
    unit: str
    rows: int
    records: int
    left_out: Mapping[str, int]
    first_left_out: Mapping[str, str]
    by: str
    left_out_by: Mapping[str, int]
    lengths: LengthFacts
    labels: LabelFacts
    doubles: DoubleFacts
    near: NearFacts | None
    texts: TextFacts
    tokens: TokenFacts | None
    samples: Sequence[Shown]
    extremes: Mapping[str, Shown]
    repeated: Sequence[tuple[Shown, Shown]]
    contradicting: Sequence[tuple[Shown, Shown]]
    nearly: Sequence[tuple[Shown, Shown]]


@dataclass(frozen=True)
class Inspection:
    """What was found in data.

    Args:
        splits: By split, in the given order.
        leaks: What splits share with evaluation sets and with splits that are held out.
    """

    splits: Sequence[SplitFacts]
    leaks: Sequence[Leak]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def inspect(
    splits: Data | Mapping[str, Data],
    *,
    against: Mapping[str, Data] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    kind: Kind | None = None,
    format: Format | None = None,
    by: str | None = None,
    similarity: float | None = 0.8,
    run: int = 13,
    samples: int = 6,
) -> Inspection:
    """Look through data before training on it: lengths, labels, repetitions, leakage, signs that something went wrong.

    Each file is read once, and once more as far as the records that are shown. What is kept of it grows with the
    records: some 50 bytes of each, 264 more for near-duplicates, and of sets that are looked for in others 24 bytes a
    word. Texts are not kept.

    Args:
        splits: A source or a path (a directory of the `datasets` library may hold several splits); or several by name,
            the one that is trained on first, those that are held out behind.
        against: Evaluation sets by name, in any columns: their texts are looked for in all splits.
        tokenizer: Lengths are tokens as it makes them, and its special tokens and chat template are checked. None:
            lengths are characters.
        kind: What to read the rows as, where they can be several things. None: what says most of them.
        format: The format. None: the one that reads the first rows of each split.
        by: Column that says where a row comes from. None: `source`, `subset`, `dataset`, `domain` or the like.
        similarity: From which Jaccard similarity of three-word runs two records are near-duplicates, above 0 and at
            most 1; lower finds more and costs time. None: they are not looked for, and datasketch isn't needed.
        run: How many words in a row count as leaked; 13 as for GPT-3 (arXiv:2005.14165), 8 finds more by chance.
        samples: How many records to show.

    Returns:
        Figures, and records as text.

    Raises:
        ConfigurationError: An option is out of range, no format reads the rows, or the extra `inspect` is missing.
        DataError: A file can't be read.

    Example:
        >>> from lit_rlhf.data import RowsSource
        >>> row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
        >>> other = {"prompt": "2 + 2 =", "chosen": " 5", "rejected": " 4"}
        >>> found = inspect(RowsSource([row, row, other]), similarity=None).splits[0].doubles
        >>> found.repeated, found.contradicting
        (1, 3)
    """
    fitting = similarity is None or (is_number(similarity) and 0 < similarity <= 1)
    check_option(fitting, inspect, "similarity", similarity, "above 0 and at most 1, or left out")
    check_option(is_whole(run, 2), inspect, "run", run, "a whole number of 2 or more")
    check_option(is_whole(samples, 0), inspect, "samples", samples, "a whole number of 0 or more")
    named = splits if isinstance(splits, Mapping) else _splits_of(splits)
    if not named:
        raise ConfigurationError("No data to inspect: give a source, a path, or several by name.")
    held: list[HeldOut] = []
    for name, data in (against or {}).items():
        source = _source(data)
        held.append(HeldOut(name, run, source.locate))
        for row in rows_of(source):
            held[-1].add(map(hash_words, texts_of(row)))
    facts: list[SplitFacts] = []
    leaks: list[Leak] = []
    for name, data in reversed([*named.items()]):
        source = _source(data)
        reading = read_as(some_rows(source), str(source), kind, format, layout_for(tokenizer))
        look = _Look(name, Reader(source, reading, tokenizer, by), held, similarity, run, samples)
        look.through(held_out=name != next(iter(named)))
        facts.insert(0, look.result())
        leaks = [*(each.result(look.reader.joined.locate) for each in look.leakages), *leaks]
        held = [look.own, *held]
    return Inspection(facts, leaks)


class _Look:
    """One split, and all that look at its records."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        held: Sequence[HeldOut],
        similarity: float | None,
        run: int,
        samples: int,
    ) -> None:
        self.name, self.reader, self.wanted = name, reader, samples
        tokenizer = reader.tokenizer
        self.lengths = Lengths("characters" if tokenizer is None else "tokens")
        self.labels, self.doubles = Labels(reader.reading.format), Doubles()
        self.texts = Texts(tokenizer)
        self.near = None if similarity is None else Near(similarity)
        self.tokens = None if tokenizer is None else Tokens(tokenizer)
        self.leakages = [Leakage(name, each) for each in held]
        self.own = HeldOut(name, run, self.locate)
        self._places = array("Q")
        self._drawn: list[tuple[int, int]] = []  # (minus a hash, record): the smallest hashes
        self._extremes: dict[str, tuple[int, int]] = {}  # (length, record)

    def locate(self, record: int) -> str:
        """Where the row of a record is, by the record's number among those used."""
        return self.reader.joined.locate(self._places[record] // _PLACES)

    def through(self, *, held_out: bool) -> None:
        """Go through all records.

        Args:
            held_out: Whether other splits are to be compared with this one.
        """
        lookers = (self.lengths, self.labels, self.doubles, self.texts, self.near, self.tokens)
        adds = [each.add for each in (*lookers, *self.leakages) if each is not None]
        for item in self.reader:
            for add in adds:
                add(item)
            if held_out:
                self.own.add(item.words)
            self._draw(item)
            self._places.append(item.number * _PLACES + min(item.place, _PLACES - 1))

    def _draw(self, item: Item) -> None:
        number = len(self._places)
        heapq.heappush(self._drawn, (-stable_hash("sample", number), number))
        if len(self._drawn) > self.wanted:
            heapq.heappop(self._drawn)
        lengths = item.lengths[1]
        if lengths:
            for name, length in (
                ("longest answer", max(lengths)),
                ("shortest answer", -min(lengths)),
            ):
                if name not in self._extremes or length > self._extremes[name][0]:
                    self._extremes[name] = length, number

    def result(self) -> SplitFacts:
        """What was found."""
        reader, report, reading = self.reader, self.reader.report, self.reader.reading
        doubles = self.doubles.result()
        near = None if self.near is None else self.near.result()
        twos = (
            doubles.repeated_examples,
            doubles.contradicting_examples,
            near.examples if near else (),
        )
        drawn = sorted(number for _, number in self._drawn)
        extremes = {name: number for name, (_, number) in self._extremes.items()}
        shown = self._shown(
            {*drawn, *extremes.values(), *(i for two in twos for both in two for i in both)}
        )
        repeated, contradicting, nearly = (
            [(shown[one], shown[other]) for one, other in two] for two in twos
        )
        cut_prompts = reader.encoder.cut_prompts if reader.encoder else 0
        return SplitFacts(
            name=self.name,
            source=report.source,
            format=spell(reading.format),
            kind=reading.kind,
            unit=report.unit,
            rows=report.rows,
            records=report.records,
            left_out=report.counts,
            first_left_out={name: reason.first for name, reason in report.reasons.items()},
            by=reader.by or "",
            left_out_by=dict(reader.left_out),
            lengths=self.lengths.result(),
            labels=self.labels.result(),
            doubles=doubles,
            near=near,
            texts=self.texts.result(),
            tokens=None if self.tokens is None else self.tokens.result(cut_prompts),
            samples=[shown[number] for number in drawn],
            extremes={name: shown[number] for name, number in extremes.items()},
            repeated=repeated,
            contradicting=contradicting,
            nearly=nearly,
        )

    def _shown(self, wanted: Iterable[int]) -> dict[int, Shown]:
        places = {number: divmod(self._places[number], _PLACES) for number in wanted}
        records = self.reader.again(places.values())
        return {
            number: show_record(records[at], self.reader.joined.locate(at[0]))
            for number, at in places.items()
        }


def show_record(record: Record, where: str) -> Shown:
    """A record as text, with the roles of its messages."""
    names = part_names(record.fields, len(record.completions))
    texts = [_spelled(text) for text in (record.prompt, *record.completions)]
    return Shown(where, dict(record.fields), list(zip(names, texts, strict=True)))


def _spelled(text: Text) -> str:
    if not isinstance(text, str):
        text = "\n".join(map(shown_turn, text))
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}\n[... {len(text) - _MOST_CHARACTERS:,} more characters]"


def _splits_of(data: Data) -> Mapping[str, Data]:
    """The splits of a directory that `DatasetDict.save_to_disk` wrote, `train` first; of anything else, itself."""
    names = Path() if isinstance(data, Source) else Path(data) / "dataset_dict.json"
    if not names.is_file():
        return {"train": data}
    found = sorted(
        json.loads(names.read_text(encoding="utf-8"))["splits"], key=lambda n: n != "train"
    )
    return {name: DirectorySource(str(data), name) for name in found}


def _source(data: Data) -> Source:
    return data if isinstance(data, Source) else local_source(str(data))
