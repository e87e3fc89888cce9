"""The report of a reward model, or of two beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.evaluation import Difference, RewardEvaluation, ScoredComparison
from lit_rlhf.evaluation.comparisons import text_of
from lit_rlhf.report.page import (
    Block,
    Cell,
    Code,
    Note,
    Numbers,
    Sample,
    Samples,
    Section,
    Table,
    write_page,
)
from lit_rlhf.report.reward_sections import PARTS, percent, span

_WORST, _FEW = 12, 100
_HOW = (
    "Accuracy: the share of comparisons whose better answer scores higher; a tie counts nothing. With soft labels it "
    "is the agreement with a rater drawn at random. Intervals hold with 95 %: of shares Wilson's, with all comparisons "
    "of one prompt counted as one; of means the percentiles of 2,000 bootstrap draws of whole prompts. Where there is "
    "no other prompt each comparison counts by itself. "
    "McNemar's test takes comparisons as independent: with several of one prompt its p-value is too small."
)


def report_reward(
    evaluations: Sequence[RewardEvaluation],
    output: Path,
    difference: Difference | None = None,
    command: str = "",
) -> Path:
    """Write the report of one reward model, or of two and what tells them apart.

    Args:
        evaluations: One or two, on the same data.
        output: The HTML file; its numbers lie as JSON beside it.
        difference: Of two.
        command: What made it.

    Returns:
        The HTML file.

    Raises:
        FileError: The report can't be written.
    """
    first = evaluations[0]
    told = [Code(command, "the command")] if command else []
    sections = [
        Section("At a glance", [*_glance(evaluations), *_notes(evaluations)]),
        None if difference is None else _differences(evaluations, difference),
        *(part(evaluations) for part in PARTS),
        *([_worst(one) for one in evaluations] if difference is None else []),
        Section("How it was measured", told, _HOW),
    ]
    data: dict[str, Any] = {"models": [values_of(one) for one in evaluations]}
    if difference is not None:
        data["difference"] = {k: v for k, v in vars(difference).items() if k != "apart"}
    title = " against ".join(one.model for one in evaluations)
    lead = f"{len(first.scored):,} comparisons of {first.data.source}, read by {first.data.format}"
    return write_page(output, f"Reward model: {title}", sections, lead, data)


def values_of(one: RewardEvaluation) -> dict[str, Any]:
    """The numbers of an evaluation, for `plain_json`, which makes {value, low, high} of intervals."""
    apart = ("model", "data", "scored", "pairs", "subsets", "turned")
    return {
        "model": one.model,
        "data": one.data.source,
        "format": one.data.format,
        "comparisons": len(one.scored),
        "pairs": len(one.pairs.margins),
        "subsets": {
            each.name: {"comparisons": each.rows, "accuracy": each.accuracy} for each in one.subsets
        },
        "turned": {each.change: each for each in one.turned},
        **{name: value for name, value in vars(one).items() if name not in apart},
    }


def _glance(evaluations: Sequence[RewardEvaluation]) -> list[Block]:
    if len(evaluations) == 1:
        few = _few(evaluations[0])
        return [Numbers([(value, f"{label}{interval}") for label, value, interval in few])]
    columns = [
        {label: f"{value}{interval}" for label, value, interval in _few(one)} for one in evaluations
    ]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows: list[list[Cell]] = [
        [label, *(column.get(label) for column in columns)] for label in labels
    ]
    return [Table(["", *(one.model for one in evaluations)], rows)]


def _few(one: RewardEvaluation) -> list[tuple[str, str, str]]:
    """The numbers that matter most: label, value, interval."""
    found = [("accuracy", percent(one.accuracy.value), span(one.accuracy))]
    if "mean of sections" in one.sections:
        mean = percent(one.sections["mean of sections"])
        found.append(("mean of RewardBench's sections", mean, ""))
    if one.ceiling is not None:
        most = percent(one.ceiling.best)
        found.append(("the most that raters' disagreement allows", most, ""))
    if one.calibration is not None:
        found += [
            ("expected calibration error", f"{one.calibration.error:.3f}", ""),
            ("Brier score; a coin has 0.25", f"{one.calibration.brier:.3f}", ""),
        ]
    if (length := one.biases.get("characters")) is not None:
        excess = f"{100 * length.excess.value:+z.1f} points"
        label = "it prefers the longer answer more often than raters do"
        found.append((label, excess, span(length.excess, signed=True)))
    if one.turned:
        worst = max(one.turned, key=lambda each: each.turned.value)
        label = "of its verdicts turn by a change that says nothing"
        found.append((label, percent(worst.turned.value), f": {worst.change}"))
    if one.position is not None:
        shift = f"{100 * one.position.value:+z.1f} points"
        label = "what is shown first is favored by"
        found.append((label, shift, span(one.position, signed=True)))
    return found


def _notes(evaluations: Sequence[RewardEvaluation]) -> list[Note]:
    if len(evaluations) == 1:
        notes = _notes_of(evaluations[0])
        return [replace(note, text=note.text[0].upper() + note.text[1:]) for note in notes]
    return [
        replace(note, text=f"{one.model}: {note.text}")
        for one in evaluations
        for note in _notes_of(one)
    ]


def _notes_of(one: RewardEvaluation) -> Iterator[Note]:
    if one.accuracy.high < 0.5 and all(e.comparison.kind == "pair" for e in one.scored):
        text = "worse than a coin. Are chosen and rejected the wrong way round, here or in what it was trained on?"
        yield Note(text, bad=True)
    if one.ties > 0.01:
        text = f"{percent(one.ties)} of the pairs score alike to the last bit, and count as wrong."
        yield Note(f"{text} Does it read the answers, and to their end?", bad=one.ties > 0.1)
    if one.fitted > 0:
        text = (
            f"its temperature was fitted on {percent(one.fitted)} of these pairs, so their calibration error says "
            "little of other pairs. Judge it on pairs that it was not fitted on."
        )
        yield Note(text, bad=True)
    if one.left_out:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in one.left_out.items())
        yield Note(f"left out: {reasons}.")
    count = len(one.scored)
    prompts = len({each.comparison.record().prompt_key() for each in one.scored})
    if prompts == 1 < count:
        text = "all comparisons are of one prompt. Intervals take each as a case of its own"
        yield Note(f"{text}, and hold for this prompt alone.")
    if count < _FEW:
        yield Note(f"{count} comparisons are few: mind the intervals.")
    elif 1 < prompts < _FEW:
        yield Note(f"{prompts} different prompts are few: mind the intervals.")


def _differences(evaluations: Sequence[RewardEvaluation], found: Difference) -> Section:
    first, second = (one.model for one in evaluations)
    better = second if found.second_only > found.first_only else first
    pairs = all(len(one.scores) == 2 for one in evaluations[0].scored)
    top = "" if pairs else ", of the answer at the top"
    if found.p_value < 0.05:
        verdict = f"{better} is better: the difference is beyond chance."
    elif found.accuracy.low > 0 or found.accuracy.high < 0:
        which = f"McNemar's test{top and top + ','}"
        verdict = f"The interval of accuracy puts the difference beyond chance, {which} doesn't."
    else:
        verdict = "The difference could be chance."
    accuracy, margin = span(found.accuracy, signed=True), span(found.margin, signed=True, scale=1)
    told = {
        f"accuracy of the second less that of the first{accuracy}": f"{100 * found.accuracy.value:+z.1f} points",
        f"p-value of McNemar's exact test{top}": f"{found.p_value:.2g}",
        f"difference of margins, in their standard deviations{margin}": f"{found.margin.value:+z.2f}",
        "of comparisons with the same answer at the top": percent(found.same),
    }
    rows: list[list[Cell]] = [
        [f"{first} right", found.both, found.first_only],
        [f"{first} wrong", found.second_only, found.neither],
    ]
    samples = [
        _sample(one, {first: one.scores.tolist(), second: other.scores.tolist()})
        for one, other in found.apart[:_WORST]
    ]
    blocks: list[Block] = [Numbers([(value, label) for label, value in told.items()])]
    blocks.append(Table(["", f"{second} right", f"{second} wrong"], rows))
    if samples:
        blocks.append(Samples(samples, "Comparisons that one of them alone gets right:", shown=2))
    text = f"{verdict} Of {found.rows:,} comparisons that both scored."
    return Section("The difference", blocks, text)


def _worst(one: RewardEvaluation) -> Section:
    wrong = [each for each in one.scored if not each.right]

    def lead(each: ScoredComparison) -> float:
        """By how much the best of the better answers lies above the top."""
        values = torch.tensor(each.comparison.values)
        return float(each.scores[values == values.max()].max() - each.scores.max())

    wrong.sort(key=lead)
    samples = [_sample(each, {"": each.scores.tolist()}) for each in wrong[:_WORST]]
    text = (
        "The comparisons that it gets wrong by most. Read them: labels are wrong here more often than elsewhere."
        if samples
        else "It gets all comparisons right. On data that it has not seen, that is rare."
    )
    return Section("Where it is most wrong", [Samples(samples, shown=4)] if samples else [], text)


def _sample(one: ScoredComparison, scores: Mapping[str, Sequence[float]]) -> Sample:
    each = one.comparison
    names = ["chosen", "rejected"]
    if each.kind == "sets":
        names = ["good" if value else "bad" for value in each.values]
    elif each.kind == "ranking":
        names = [f"raters' score {value:g}" for value in each.values]
    texts = [("prompt", _shown(each.prompt))]
    for place, (name, answer) in enumerate(zip(names, each.answers, strict=True)):
        said = ", ".join(
            f"{who + ': ' if who else 'score '}{s[place]:.3f}" for who, s in scores.items()
        )
        texts.append((f"{name}, {said}", text_of(answer)))
    facts: dict[str, Cell] = {"row": each.row + 1}
    if each.subset:
        facts["subset"] = each.subset
    if each.p_chosen < 1:
        facts["raters for chosen"] = percent(each.p_chosen)
    return Sample(texts, facts)


def _shown(text: Any) -> str:
    if isinstance(text, str):
        return text
    return "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in text)
