"""The sections of the report of data: rows, lengths, pairs, labels, leakage, endings."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lit_rlhf.data.inspection import Leak, SplitFacts, quantiles
from lit_rlhf.metrics import wilson_interval
from lit_rlhf.report.page import Block, Cell, Figures, Section, Table
from lit_rlhf.report.plots import Interval, bar_plot, histogram, interval_plot
from lit_rlhf.report.vega import Plot

_MOST_ORIGINS = 20
_MOST_RUNS = 4
_BARS_UP_TO = 12  # different values of a label, beyond which they are a histogram


def rows_section(splits: Sequence[SplitFacts]) -> Section:
    """Rows by split, by reason of being left out, and by origin."""
    columns = ["split", "read from", "format", "rows", "used", "left out", "different prompts"]
    rows: list[list[Cell]] = [
        [s.name, s.source, s.format, s.rows, s.records, sum(s.left_out.values()), s.doubles.prompts]
        for s in splits
    ]
    blocks: list[Block] = [Table(columns, rows)]
    reasons: list[list[Cell]] = [
        [s.name, reason, count, s.first_left_out.get(reason)]
        for s in splits
        for reason, count in s.left_out.items()
    ]
    if reasons:
        blocks.append(
            Table(["split", "left out", "count", "the first"], reasons, "Left out, by reason.")
        )
    for split in splits:
        if split.by:
            blocks += _origins(split, several=len(splits) > 1)
    units = " and ".join(dict.fromkeys(s.unit for s in splits))
    text = f"Counts are of {units}; what is left out here is left out in training too."
    return Section("Rows", blocks, text)


def _origins(split: SplitFacts, *, several: bool) -> list[Block]:
    facts, unit = split.lengths.origins, split.lengths.unit
    names = sorted({*facts, *split.left_out_by}, key=lambda name: -_count(split, name))
    shown, hidden = names[:_MOST_ORIGINS], names[_MOST_ORIGINS:]
    columns = [split.by, "used", "left out", f"{unit} of a prompt", f"{unit} of an answer"]
    paired = split.lengths.pair is not None
    rows: list[list[Cell]] = []
    for name in shown:
        fact = facts.get(name)
        row: list[Cell] = [
            name or "(none)",
            fact.records if fact else 0,
            split.left_out_by.get(name, 0),
        ]
        row += [fact.prompt if fact else None, fact.answer if fact else None]
        if paired:
            row.append(100 * fact.longer / fact.differing if fact and fact.differing else None)
        rows.append(row)
    more = f"; {len(hidden)} more are in the JSON file" if hidden else ""
    where = f" of {split.name}" if several else ""
    caption = f"By the column {split.by!r}{where}{more}. Lengths are means."
    bars = {name or "(none)": _count(split, name) for name in shown}
    blocks: list[Block] = []
    if len(bars) > 1:
        blocks.append(Figures([bar_plot(f"{split.unit} by {split.by}{where}", bars, x=split.unit)]))
    return [*blocks, Table([*columns, *(["better is longer, %"] if paired else [])], rows, caption)]


def _count(split: SplitFacts, origin: str) -> int:
    fact = split.lengths.origins.get(origin)
    return (fact.records if fact else 0) + split.left_out_by.get(origin, 0)


def lengths_section(splits: Sequence[SplitFacts]) -> Section | None:
    """How long prompts and answers are, and how many records are over usual limits."""
    plots: list[Plot] = []
    rows: list[list[Cell]] = []
    over: list[list[Cell]] = []
    for split in splits:
        where = f", {split.name}" if len(splits) > 1 else ""
        unit, parts = split.lengths.unit, split.lengths.parts
        counts = {name: spread.counts for name, spread in parts.items()}
        prompts = {name: each for name, each in counts.items() if name == "prompt"}
        answers = {name: each for name, each in counts.items() if name != "prompt"}
        for title, groups in ((f"Prompts{where}", prompts), (f"Answers{where}", answers)):
            if groups:
                plots.append(_clipped(title, groups, unit))
        for name, s in parts.items():
            rows.append([split.name, name, s.count, s.mean, s.median, s.p90, s.p99, s.longest])
        for limit, count in sorted(split.lengths.over.items()):
            over.append([split.name, limit, count, 100 * count / max(split.records, 1)])
    if not rows:
        return None
    unit = splits[0].lengths.unit
    columns = ["split", "part", "count", "mean", "median", "90 %", "99 %", "longest"]
    tables: list[Block] = [Figures(plots), Table(columns, rows, f"Lengths in {unit}.")]
    if over:
        caption = f"Prompt and longest answer together are over a limit of {unit}."
        tables.append(Table(["split", "limit", "over it", "in %"], over, caption))
    return Section("Lengths", tables)


def _clipped(title: str, groups: Mapping[str, Mapping[int, int]], unit: str) -> Plot:
    """A histogram up to the length that one answer in two hundred exceeds; these are counted in the last bar."""
    whole = sum(map(Counter, groups.values()), Counter[int]())
    (end,) = quantiles(whole, [0.995])
    held = {name: _held(counts, 0, end) for name, counts in groups.items()}
    longest = max(whole)
    caption = f"The last bar holds all up to {longest:,}." if end < longest else ""
    return histogram(title, held, x=unit, caption=caption)


def _held(counts: Mapping[int, int], low: int, high: int) -> Counter[float]:
    """Lengths between two ends; those beyond are counted at the ends."""
    found: Counter[float] = Counter()
    for length, count in counts.items():
        found[min(max(length, low), high)] += count
    return found


def pairs_section(splits: Sequence[SplitFacts]) -> Section | None:
    """What better answers have in common beside being better."""
    plots: list[Plot] = []
    for split in splits:
        pair, where = split.lengths.pair, f", {split.name}" if len(splits) > 1 else ""
        if pair is None:
            continue
        better, worse = ("chosen", "rejected") if split.kind == "pairs" else ("best", "worst")
        unit = split.lengths.unit
        plots.append(_differences(f"{better} minus {worse} length{where}", pair.differences, unit))
        shares = [("longer", pair.pairs - pair.equal, pair.longer)]
        shares += [(name, count, good) for name, (count, good) in pair.features.items()]
        intervals = [
            Interval(f"{name} ({count:,})", *wilson_interval(good / count, count))
            for name, count, good in shares
            if count
        ]
        caption = (
            f"Of pairs in which one answer alone has it (how many: in brackets), the share in which that is the "
            f"{better} one; 95 % intervals (Wilson). At the dotted line it says nothing."
        )
        title = f"What {better} answers have{where}"
        plots.append(
            interval_plot(title, intervals, x=f"share {better}", caption=caption, level=0.5)
        )
    text = (
        "A reward model learns whatever tells better from worse answers, cheap signs first. Those far from a half are "
        "worth a look at the data, or a penalty in the reward."
    )
    return Section("Better against worse answers", [Figures(plots)], text) if plots else None


def _differences(title: str, differences: Mapping[int, int], unit: str) -> Plot:
    held = _held(differences, *quantiles(differences, (0.005, 0.995)))
    caption = (
        "Right of zero the better answer is the longer one. The outermost bars hold all beyond."
    )
    return histogram(title, {"pairs": held}, x=unit, caption=caption)


def labels_section(splits: Sequence[SplitFacts]) -> Section | None:
    """What labels say, how strongly, and whether raters agree."""
    plots: list[Plot] = []
    rows: list[list[Cell]] = []
    for split in splits:
        where = f", {split.name}" if len(splits) > 1 else ""
        for name, values in split.labels.values.items():
            title = f"{name}{where}"
            unit = {"score": "answers", "step_label": "steps"}.get(name, split.unit)
            if len(values) <= _BARS_UP_TO:
                bars = {_spelled(name, value): count for value, count in values.items()}
                plots.append(bar_plot(title, bars, x=unit))
            else:
                plots.append(histogram(title, {unit: values}, x=name))
        again, agreement = split.doubles, split.labels.agreement
        if agreement is not None:
            rows += [
                [split.name, "rated by two or more", agreement.rated],
                [split.name, "votes on these", agreement.votes],
                [split.name, "unanimous, %", 100 * agreement.unanimous / agreement.rated],
                [split.name, "two votes agree, %", 100 * agreement.share],
                [split.name, "Krippendorff's alpha, interval", agreement.alpha],
                [split.name, "label against most votes", agreement.overruled],
            ]
        if again.share_agreeing is not None:
            rows += [
                [split.name, "comparisons made more than once", again.compared_again],
                [split.name, "two statements on one agree, %", 100 * again.share_agreeing],
            ]
    if not plots and not rows:
        return None
    blocks: list[Block] = [Figures(plots)] if plots else []
    if rows:
        caption = "Agreement. Where raters differ, no model can be right by all of them."
        blocks.append(Table(["split", "what", "value"], rows, caption))
    return Section("Labels and raters", blocks)


def _spelled(name: str, value: float) -> str:
    return str(bool(value)).lower() if name == "label" else f"{value:g}"


def leaks_section(leaks: Sequence[Leak]) -> Section | None:
    """What splits share with held-out sets."""
    if not leaks:
        return None
    columns = [
        "split", "held out", "its rows", "hit", "nearly whole", "prompts shared",
        "hits in the split",
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [x.split, x.other, x.rows, x.rows_hit, x.rows_covered, x.prompts_shared, x.records_hit]
        for x in leaks
    ]
    marked = frozenset(i for i, x in enumerate(leaks) if x.rows_hit or x.prompts_shared)
    blocks: list[Block] = [Table(columns, rows, marked=marked, mark="shares text")]
    shared: list[list[Cell]] = [
        [f"{x.split}, {x.other}", run.text, run.records, run.where, run.other]
        for x in leaks
        for run in x.shared[:_MOST_RUNS]
    ]
    if shared:
        caption = (
            "What is shared most; a phrase that every prompt has (a form to fill in) is no leak."
        )
        names = ["between", "words", "records", "first in", "and in"]
        blocks.append(Table(names, shared, caption))
    text = (
        f"A row is hit where {leaks[0].run} words in a row stand in the split too, nearly whole where four of five "
        "such runs do. Case and punctuation don't count, nor do system turns."
    )
    return Section("Leakage", blocks, text)


def ends_section(splits: Sequence[SplitFacts]) -> Section:
    """Special tokens, chat template, endings and odd characters."""
    rows: list[list[Cell]] = []
    for split in splits:
        texts, tokens = split.texts, split.tokens
        for token, count in texts.special.items():
            rows.append([split.name, f"{token} is written in the text", count])
        rows += [[split.name, f"{name} in the text", count] for name, count in texts.odd.items()]
        for name, (count, unfinished) in texts.unfinished.items():
            told = f"{name} answers that end within a sentence or code, of {count:,}"
            rows.append([split.name, told, unfinished])
        if texts.turns:
            rows.append([split.name, "conversations with a system turn", texts.with_system])
        rows += [
            [split.name, f"turns of the prompt: {turns}", n] for turns, n in texts.turns.items()
        ]
        if tokens is not None:
            ends = ", ".join(f"{token} {count:,}" for token, count in tokens.ends.items())
            rows += [
                [split.name, "start token twice", tokens.start_twice],
                [split.name, "no start token", tokens.no_start],
                [split.name, "answers that end in no special token", tokens.no_end],
                [split.name, "last tokens of answers", ends or None],
                [split.name, "the chat template ends answers with", tokens.end_of_turn],
                [split.name, "prompts rendered otherwise before an answer", tokens.cut_prompts],
                [split.name, "padding is the end token", tokens.pad_is_end],
            ]
    named = next((split.tokens.tokenizer for split in splits if split.tokens), None)
    text = f"As {named} tokenizes." if named else "Without a tokenizer, text alone is looked at."
    return Section(
        "Endings, special tokens and templates", [Table(["split", "what", "count"], rows)], text
    )
