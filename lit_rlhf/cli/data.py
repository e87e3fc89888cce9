"""`lit-rlhf data`: which format rows are of, a row as tokens, a report, and any format to the canonical columns."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_rlhf.cli.functions import call
from lit_rlhf.cli.output import print_text, refuse_input, write_rows
from lit_rlhf.data import Format, InvalidRowError, Record, Source, recognition
from lit_rlhf.data.canonical import canonical_row
from lit_rlhf.data.conversion import TEMPLATE_COLUMNS, Conversion, grouped, template_options
from lit_rlhf.data.encoding import Encoder
from lit_rlhf.data.finding import unread_columns
from lit_rlhf.data.kinds import shape_of
from lit_rlhf.data.recognition import Kind, Reading
from lit_rlhf.data.records import Row, part_names, shown_turn
from lit_rlhf.data.sources import local_source
from lit_rlhf.errors import ConfigurationError, DataError, near
from lit_rlhf.files import whole_file
from lit_rlhf.tokenizers import load_tokenizer

_BLUE, _GREEN, _PLAIN = "\033[34m", "\033[32m", "\033[0m"
_HEAD, _TAIL = 2_000, 1_000  # tokens, or characters, of a text that is shown
_TRIED = 64  # rows, until one can be used


def show(
    path: str,
    tokenizer: str | None = None,
    kind: Kind | None = None,
    format: Format | None = None,
    row: int | None = None,
    color: Literal["auto", "always", "never"] = "auto",
) -> None:
    """Name the format of a file and show a row: its prompt, and the answers, which are what is learned.

    Args:
        path: JSONL, JSON, CSV, TSV or Parquet, or a directory that `save_to_disk` of the datasets library wrote.
        tokenizer: Directory or hub id of a tokenizer: the row is shown token by token, as its model will see it.
        kind: What to read the rows as, where they can be several things. Default: what says most of them.
        format: The format; default: the one that reads the first rows.
        row: Which row, counted from 1; of formats that read neighbouring rows together, which of these groups. Default:
            the first that can be used.
        color: Prompts blue and answers green: on a terminal, always, or never.
    """
    source = local_source(path)
    rows = recognition.some_rows(source)
    loaded = load_tokenizer(tokenizer) if tokenizer is not None else None
    layout = recognition.layout_for(loaded)
    reading = recognition.read_as(rows, str(source), kind, format, layout)
    joined = grouped(source, reading.format)
    lines = [
        f"format: {recognition.spell(reading.format)}",
        f"kind:   {reading.kind}, for {recognition.MODULES[reading.kind]}",
    ]
    if format is None:
        lines += [
            f"        or {each.kind}, by {recognition.spell(each.format)}: --kind={each.kind}"
            for each in recognition.readings(rows, (), layout)
            if each.kind != reading.kind
        ]
    paint = color == "always" or (color == "auto" and sys.stdout.isatty())
    shown, records, parts = _row_to_show(joined, reading.format, loaded, row, paint=paint)
    if unread := unread_columns(reading.format, [shown]):
        lines.append(f"columns that are not read: {', '.join(unread)}")
    if reading.kind == "prompts" and format is None and records[0].columns:
        answers = [each for each in recognition.MODULES if each not in ("prompts", "text")]
        way = recognition.proposal(rows, answers, "--format")
        lines.append(
            f"columns for the rewards: {', '.join(records[0].columns)}. If they are answers, add "
            + (way or "--format Ranked --format.completions COLUMN --format.scores COLUMN, for one")
            + "."
        )
    lines += chain.from_iterable(["", *each] for each in parts)
    print_text("\n".join(lines) + "\n")


def inspect(
    path: str,
    val: str | None = None,
    test: str | None = None,
    against: list[str] | str | None = None,
    tokenizer: str | None = None,
    kind: Kind | None = None,
    format: Format | None = None,
    by: str | None = None,
    similarity: float | None = 0.8,
    run: int = 13,
    samples: int = 6,
    output: Path = Path("inspection.html"),
) -> None:
    """Look through a file before training on it: what was found becomes one HTML page, its numbers as JSON beside it.

    What is left out and why, lengths, what chosen answers have in common, labels and raters, repetitions and
    contradictions, near-duplicates, leakage, special tokens and endings, and rows to read.

    Args:
        path: See `lit-rlhf data show --help`; a directory of the `datasets` library may hold several splits.
        val: Held-out rows, which `path` is searched for.
        test: More of them.
        against: Evaluation sets in any columns: a file, or '[a.jsonl, b.jsonl]'. They are searched for in all splits.
        tokenizer: Directory or hub id: lengths are tokens, and its special tokens and template are checked.
        kind: What to read the rows as, where they can be several things. Default: what says most of them.
        format: The format; default: the one that reads the first rows.
        by: Column that says where a row comes from. Default: `source`, `subset`, `domain` or the like.
        similarity: From which Jaccard similarity of three-word runs rows are near-duplicates; null: not looked for.
        run: How many words in a row count as leaked.
        samples: How many rows to show.
        output: The page.
    """
    from lit_rlhf.data import inspection  # noqa: PLC0415  (start-up that --help shall not pay)
    from lit_rlhf.report.data_page import report_data  # noqa: PLC0415  (see above)

    held = {name: each for name, each in (("val", val), ("test", test)) if each is not None}
    others = [against] if isinstance(against, str) else against or []
    found = inspection.inspect(
        {"train": path, **held} if held else path,
        against={Path(each).name: each for each in others},
        tokenizer=load_tokenizer(tokenizer) if tokenizer is not None else None,
        kind=kind,
        format=format,
        by=by,
        similarity=similarity,
        run=run,
        samples=samples,
    )
    several = len(found.splits) > 1
    lines = [
        f"{'!' if each.bad else '-'} {f'{each.split}: ' if several and each.split else ''}{each.text}"
        for each in inspection.findings(found)
    ]
    print_text("\n".join([*lines, str(report_data(found, output))]) + "\n")


def convert(
    path: str,
    output: Path,
    kind: Kind | None = None,
    format: Format | None = None,
    invalid: Literal["drop", "error"] = "drop",
) -> None:
    """Write any format as the columns prompt, chosen, rejected and so on, which are read without an option.

    Questions and answers that are turns of a conversation are written as messages; transcripts with markers stay text.

    Args:
        path: See `lit-rlhf data show --help`.
        output: JSONL or Parquet, by its suffix.
        kind: What to read the rows as, where they can be several things. Default: what says most of them.
        format: The format; default: the one that reads the first rows.
        invalid: Rows that can't be used are left out and counted, or end the run.
    """
    source = local_source(path)
    refuse_input(output, source)
    # As text, question and answer would run together.
    rows = recognition.some_rows(source)
    reading = recognition.read_as(rows, str(source), kind, format, "canonical")
    counts: Counter[str] = Counter()
    made = _canonical(source, reading, counts, invalid)
    if output.suffix == ".jsonl":
        write_rows(made, output)
    else:
        # What templates get as JSON: structs of Parquet have the keys of all rows, and can't be empty. Rewards read
        # columns of prompts as they are.
        as_json = () if reading.kind == "prompts" else TEMPLATE_COLUMNS
        _write_parquet(list(made), output, as_json)
    written = counts.pop("", 0)
    reasons = "".join(f"; {count} left out, {reason}" for reason, count in counts.items())
    kept = canonical_row(reading.record, reading.format, rows[0])
    unread = [name for name in unread_columns(reading.format, rows) if name not in kept]
    beside = f" Columns that are not written: {', '.join(unread)}." if unread else ""
    print_text(
        f"Wrote {written} {reading.kind} to {output}, read by {recognition.spell(reading.format)}{reasons}.{beside}\n"
    )


def _canonical(
    source: Source, reading: Reading, counts: Counter[str], invalid: str
) -> Iterator[Mapping[str, Any]]:
    """The rows to write; counts of those made (under no name) and of those left out, by reason."""
    source = grouped(source, reading.format)
    conversion = Conversion(source, reading.format, shape_of(reading.kind))
    for number, row in enumerate(source.load()):
        for each in conversion(number, row):
            if isinstance(each, Record):
                counts[""] += 1
                yield canonical_row(each, reading.format, row)
            elif invalid == "error":
                raise DataError(
                    f"{source.locate(number)}: {each}. Mend it, or leave such rows out: --invalid drop."
                ) from each
            else:
                counts[each.reason] += 1


def _write_parquet(rows: Sequence[Mapping[str, Any]], output: Path, as_json: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    names = dict.fromkeys(chain.from_iterable(rows))  # pyarrow goes by the first row's
    texts = ({n: json.dumps(row[n]) for n in as_json if row.get(n)} for row in rows)
    whole = [{**dict.fromkeys(names), **row, **text} for row, text in zip(rows, texts, strict=True)]
    try:
        table = pa.Table.from_pylist(whole)
        with whole_file(output) as temporary:
            pyarrow.parquet.write_table(table, temporary)
    # Of numbers beyond 64 bits, and of half characters.
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise DataError(
            f"The rows can't be written to {output}: a column of Parquet has one type, and its text is UTF-8, but "
            f"{error}. Write JSONL."
        ) from error


def _row_to_show(
    source: Source,
    reader: Format,
    tokenizer: PreTrainedTokenizerBase | None,
    row: int | None,
    *,
    paint: bool,
) -> tuple[Row, list[Record], list[list[str]]]:
    """A row, its records and the lines that show them: the row that is asked for, or the first that can be used."""
    refused: DataError | None = None
    first = 0 if row is None else row - 1
    last = _TRIED if row is None else max(row, 0)
    for number, shown in enumerate(islice(source.load(), max(first, 0), last), first):
        try:
            records = reader(shown)
            parts = [list(_parts(record, shown, tokenizer, paint=paint)) for record in records]
        except InvalidRowError as error:
            refused = refused or DataError(f"{source.locate(number)}: {error}.")
            continue
        if refused is not None:
            parts.insert(0, [f"{source.locate(number)}, the first that can be used. {refused}"])
        return shown, records, parts
    raise refused or ConfigurationError(f"{source} has no row {row}; rows are counted from 1.")


def _parts(
    record: Record, row: Row, tokenizer: PreTrainedTokenizerBase | None, *, paint: bool
) -> Iterator[str]:
    """Prompt and answers of a record, a line each: as text, or with a tokenizer as tokens."""
    names = part_names(record.fields, len(record.completions))
    if tokenizer is None:
        texts = (_plain(text) for text in (record.prompt, *record.completions))
        shown = [("", "".join(_ends([*text], "characters"))) for text in texts]
    else:
        if options := template_options(row):
            record = replace(record, template=options)
        prompt, completions, _ = Encoder(tokenizer)(record)
        shown = [
            (
                f"{len(ids)} tokens, ",
                "|".join(_ends([str(tokenizer.decode([index])) for index in ids], "tokens")),
            )
            for ids in (prompt, *completions)
        ]
    for place, (name, (size, text)) in enumerate(zip(names, shown, strict=True)):
        color, what = (_GREEN, "learned") if place else (_BLUE, "not learned")
        line = f"{name} ({size}{what}): " + text.replace("\n", "\\n")
        yield f"{color}{line}{_PLAIN}" if paint else line


def _ends(pieces: list[str], what: str) -> list[str]:
    """All pieces of a text, or of a very long one its two ends."""
    left_out = len(pieces) - _HEAD - _TAIL
    if left_out <= 0:
        return pieces
    return [*pieces[:_HEAD], f" [... {left_out:,} {what} ...] ", *pieces[-_TAIL:]]


def _plain(text: Any) -> str:
    if isinstance(text, str):
        return text
    return " ".join(map(shown_turn, text))


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    doings = {each.__name__: each for each in (show, inspect, convert)}
    name = words[1] if len(words) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [
            f"  {each:<8} {(doing.__doc__ or '').splitlines()[0]}" for each, doing in doings.items()
        ]
        print_text(
            "\n".join(["usage: lit-rlhf data COMMAND FILE [options]", "", *lines, ""])
            + "\nOptions: lit-rlhf data COMMAND --help\n"
        )
        return
    if name not in doings:
        raise ConfigurationError(
            f"there is no command {name!r} of data.{near(name, doings)} It is lit-rlhf data {' | '.join(doings)}."
        )
    call(doings[name], words[2:], f"data {name}", places=True)
