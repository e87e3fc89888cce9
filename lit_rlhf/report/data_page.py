"""The report of data: what `lit_rlhf.data.inspection` found, as one page."""

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.data.inspection import Inspection, Shown, SplitFacts, findings
from lit_rlhf.report.data_sections import (
    ends_section,
    labels_section,
    leaks_section,
    lengths_section,
    pairs_section,
    rows_section,
)
from lit_rlhf.report.page import (
    Block,
    Cell,
    Note,
    Numbers,
    Sample,
    Samples,
    Section,
    Table,
    write_page,
)

_MOST_SHOWN = 8
_MOST_CUT = 800  # characters of a text that stands beside another


def report_data(inspection: Inspection, output: Path) -> Path:
    """Write the report of data.

    Args:
        inspection: What `inspect` found.
        output: The HTML file; its numbers lie as JSON beside it.

    Returns:
        The HTML file.

    Raises:
        FileError: The report can't be written.
    """
    splits = inspection.splits
    sections = [
        _glance(inspection),
        rows_section(splits),
        lengths_section(splits),
        pairs_section(splits),
        labels_section(splits),
        _repeats(splits),
        leaks_section(inspection.leaks),
        ends_section(splits),
        _samples(splits),
    ]
    lead = "; ".join(f"{s.name}: {s.records:,} {s.unit}, read by {s.format}" for s in splits)
    data = {"findings": findings(inspection), **vars(inspection)}
    title = f"Data: {Path(splits[0].source).name}"
    return write_page(output, title, sections, lead, data)


def _glance(inspection: Inspection) -> Section:
    blocks: list[Block] = []
    several = len(inspection.splits) > 1
    for split in inspection.splits:
        pair, doubles = split.lengths.pair, split.doubles
        told: list[tuple[Cell, str]] = [
            (split.records, f"{split.unit} used"),
            (sum(split.left_out.values()), "left out"),
            (_percent(doubles.repeated, split), "repeat another"),
        ]
        if split.near is not None:
            told.append((_percent(split.near.records, split), "nearly repeat another"))
        if doubles.contradicting or pair:
            told.append((_percent(doubles.contradicting, split), "contradict another"))
        if pair and (longer := pair.share_longer) is not None:
            better = "chosen" if split.kind == "pairs" else "best"
            told.append((f"{100 * longer:.0f} %", f"of {better} answers are the longer ones"))
        where = f", {split.name}" if several else ""
        blocks.append(Numbers([(value, label + where) for value, label in told]))
    found = findings(inspection)
    for each in found:
        if each.bad:
            where = f"{each.split}: " if several and each.split else ""
            blocks.append(Note(where + each.text, bad=True))
    looks = [[e.text, *([e.split] if several else [])] for e in found if not e.bad]
    if looks:
        blocks.append(Table(["worth a look", *(["split"] if several else [])], looks))
    return Section("At a glance", blocks, "" if found else "Nothing stands out.")


def _percent(count: int, split: SplitFacts) -> str:
    return f"{100 * count / max(split.records, 1):.3g} %"


def _repeats(splits: Sequence[SplitFacts]) -> Section | None:
    blocks: list[Block] = []
    for split in splits:
        where = f" ({split.name})" if len(splits) > 1 else ""
        for title, twos in (
            ("Contradictions", split.contradicting),
            ("Nearly the same", split.nearly),
            ("Repetitions", split.repeated),
        ):
            if twos:
                shown = [_beside(one, other) for one, other in twos[:_MOST_SHOWN]]
                blocks.append(Samples(shown, f"{title}{where}: some of them.", shown=1))
    text = (
        "Repetitions weigh more in training than they were meant to, and make a random split leak. Contradictions "
        "teach nothing; where raters differ, their share belongs into p_chosen."
    )
    return Section("Repetitions and contradictions", blocks, text) if blocks else None


def _beside(one: Shown, other: Shown) -> Sample:
    """Two records; a text that both have stands once."""
    named: dict[str, list[str]] = {}
    for record, which in ((one, "one"), (other, "other")):
        for name, text in record.texts:
            named.setdefault(text, []).append(f"{name} of the {which}")
    texts = []
    for text, names in named.items():
        parts = {name.partition(" of the ")[0] for name in names}
        both = len(names) == 2 and len(parts) == 1
        shown = text if len(text) <= _MOST_CUT else f"{text[:_MOST_CUT]} [...]"
        texts.append((parts.pop() if both else ", ".join(names), shown))
    return Sample(texts, {"one": one.where, "other": other.where})


def _samples(splits: Sequence[SplitFacts]) -> Section | None:
    blocks: list[Block] = []
    for split in splits:
        where = f" of {split.name}" if len(splits) > 1 else ""
        extremes = [_sample(shown, name) for name, shown in split.extremes.items()]
        drawn = [_sample(shown) for shown in split.samples]
        if drawn:
            blocks.append(Samples(drawn, f"Drawn at random{where}.", shown=3))
        if extremes:
            blocks.append(
                Samples(extremes, f"The longest and the shortest answers{where}.", shown=2)
            )
    text = "Read some before you train: no figure shows what a few rows do."
    return Section("Samples", blocks, text) if blocks else None


def _sample(shown: Shown, title: str = "") -> Sample:
    # those of lists stand beside their answers
    single = {name: v for name, v in shown.fields.items() if not isinstance(v, tuple)}
    return Sample(shown.texts, {"row": shown.where, **single}, title)
