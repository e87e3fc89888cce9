"""The sections of a reward model's report: each of one model, or of several beside each other."""

import math
from collections.abc import Sequence
from typing import Any

from lit_rlhf.evaluation import RewardEvaluation
from lit_rlhf.metrics import Estimate
from lit_rlhf.report.line_plot import Series, line_plot
from lit_rlhf.report.page import Block, Cell, Figures, Note, Section, Table
from lit_rlhf.report.plots import Interval, histogram, interval_plot, reliability_plot, scatter_plot

_POINTS = 400


def subsets(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """Accuracy by subset, and RewardBench's sections; None where rows name no subset."""
    if not any(one.subsets for one in evaluations):
        return None
    bars = [
        Interval(_of(one, each.name, evaluations), *each.accuracy)
        for each, one in _in_turns([(one, one.subsets) for one in evaluations])
    ]
    plot = interval_plot(
        "Accuracy by subset",
        bars,
        x="accuracy",
        level=evaluations[0].chance,
        caption="The dotted line is what scores drawn at random would get.",
    )
    by_model: list[dict[str, list[Cell]]] = [
        {each.name: [each.rows, _percents(each.accuracy)] for each in one.subsets}
        for one in evaluations
    ]
    names = dict.fromkeys(name for found in by_model for name in found)
    rows: list[list[Cell]] = [
        [name or "(none)", *(cell for found in by_model for cell in found.get(name, [None, None]))]
        for name in names
    ]
    heads = [
        _of(one, head, evaluations) for one in evaluations for head in ("comparisons", "accuracy")
    ]
    blocks: list[Block] = [Figures([plot]), Table(["subset", *heads], rows)]
    if sections := dict.fromkeys(name for one in evaluations for name in one.sections):
        scores = [
            [
                name,
                *(percent(e.sections[name]) if name in e.sections else None for e in evaluations),
            ]
            for name in sections
        ]
        models = (one.model for one in evaluations)
        blocks.append(Table(["section", *models], scores, "RewardBench's sections"))
    return Section("Accuracy by subset", blocks)


def _of(one: RewardEvaluation, label: str, evaluations: Sequence[RewardEvaluation]) -> str:
    """A label; of several models with the model's name."""
    return f"{label} · {one.model}" if len(evaluations) > 1 else label


def raters(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """Agreement beside the raters' own; None where the data don't say how sure raters are."""
    first = evaluations[0]
    if first.ceiling is None:
        return None
    rows: list[list[Cell]] = [[one.model, _percents(one.accuracy)] for one in evaluations]
    rows += [
        ["another rater", percent(first.ceiling.raters)],
        ["the majority of raters", percent(first.ceiling.best)],
    ]
    text = (
        "How often each agrees with a rater drawn at random. No model can do better than the majority; one that agrees "
        "more than another rater does is as good as a person, on data like these."
    )
    return Section("Beside the raters", [Table(["who", "agreement"], rows)], text)


def margins(evaluations: Sequence[RewardEvaluation]) -> Section:
    """Margins, alone and against length."""
    groups, points = {}, {}
    for one in evaluations:
        pairs = one.pairs
        groups[one.model] = (pairs.margins / (one.margin_std or 1.0)).tolist()
        step = max(len(pairs.margins) // _POINTS, 1)
        lengths = pairs.differences["characters"][::step].tolist()
        points[one.model] = lengths, pairs.margins[::step].tolist()
    plots = [
        histogram(
            "Margins",
            groups,
            x="margin, in standard deviations",
            caption="Score of the better answer less that of the worse. Left of 0 it is wrong.",
        ),
        scatter_plot(
            "Margin and length",
            points,
            x="characters that the better answer is longer",
            y="margin",
            caption="A cloud that rises to the right: longer answers score higher.",
        ),
    ]
    columns = ["", "margin", "its standard deviation", "better answer longer by"]
    rows: list[list[Cell]] = [
        [
            one.model,
            _with_interval(one.margin),
            one.margin_std,
            f"{_with_interval(one.length_difference)} characters",
            one.length_correlation,
        ]
        for one in evaluations
    ]
    return Section("Margins", [Figures(plots), Table([*columns, "rank correlation"], rows)])


def calibration(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """Reliability; None of what scores no probabilities."""
    found = [(one.model, one.calibration) for one in evaluations if one.calibration is not None]
    if not found:
        return None
    plot = reliability_plot(
        "Reliability",
        {name: each.bins for name, each in found},
        x="sigmoid of the margin's size",
        y="share that raters agree with",
        caption="Below the dotted line it is too sure of itself. Larger points stand for more pairs.",
    )
    columns = ["", "calibration error", "Brier score", "best temperature", "error at it"]
    rows: list[list[Cell]] = [
        [name, each.error, each.brier, each.temperature, each.error_divided] for name, each in found
    ]
    text = (
        "Whether a margin means what it says: the sigmoid of a difference of scores, as a probability that raters "
        "prefer the answer. Margins divided by the best temperature fit the raters best; above 1 the model is too "
        "sure (lit-rlhf export --calibrate stores it with the model). The error at it is of each half of the "
        "prompts at what the other half fits. It means little for a model that was not trained on comparisons."
    )
    return Section("Calibration", [Figures([plot]), Table(columns, rows)], text)


def biases(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """What it prefers more often than raters do."""
    bars: list[Interval] = []
    rows: list[list[Cell]] = []
    found = [(one, list(one.biases.items())) for one in evaluations]
    for (name, bias), one in _in_turns(found):
        label = _of(one, name, evaluations)
        bars.append(Interval(label, *(100 * end for end in bias.excess)))
        prefer = [percent(bias.raters), percent(bias.model)]
        right = [_percents(bias.right_with), _percents(bias.right_against)]
        rows.append([label, bias.pairs, *prefer, *right])
    if not rows:
        return None
    columns = ["more of", "pairs that differ", "raters prefer it", "the model does"]
    columns += ["accuracy where raters do", "accuracy where they don't"]
    plot = interval_plot(
        "Bias",
        bars,
        x="points beyond the raters",
        level=0.0,
        caption="Of 100 such pairs, in how many more than raters the model prefers the answer with more of it.",
    )
    blocks: list[Block] = [Figures([plot]), Table(columns, rows)]
    blocks += [
        Note(
            f"{one.model} favors the answer that is shown first by {100 * one.position.value:+z.1f} points"
            f"{span(one.position, signed=True)}; its scores are the mean of both orders."
        )
        for one in evaluations
        if one.position is not None
    ]
    text = (
        "Of the pairs in which one answer has more of something: how often raters and the model prefer that one. The "
        "two accuracies lie apart where the model goes by it."
    )
    return Section("Biases", blocks, text)


def best_of(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """Best-of-n curves; None of pairs."""
    found = [(one.model, one.best_of) for one in evaluations if one.best_of is not None]
    if not found:
        return None
    series = []
    for name, curve in found:
        steps = range(1, len(curve.picked) + 1)
        values, low, high = zip(*curve.picked, strict=True)
        series.append(Series(name, steps, values, low, high))
    best = found[0][1].best
    series.append(Series("raters themselves", range(1, len(best) + 1), best))
    plot = line_plot(
        "Best of n",
        series,
        x="n, answers to choose from",
        y="raters' score of the choice",
        caption="The mean over all ways to draw n of a prompt's answers; the band is the 95 % interval over prompts.",
    )
    text = (
        "What is gained by taking the best-scored of several answers, in the raters' own scores. A curve that bends "
        "down is over-optimization: the highest scores go to worse answers."
    )
    return Section("Choosing among answers", [Figures([plot])], text)


def doubts(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """Whether ensembles are unsure where they are wrong; None of single models."""
    bars: list[Interval] = []
    told: list[list[Cell]] = []
    for one in evaluations:
        if one.doubt is None:
            continue
        names = ("least", "less", "more", "most")
        bars += [
            Interval(_of(one, name, evaluations), *each)
            for name, each in zip(names, one.doubt.quarters, strict=False)
        ]
        told.append([one.model, one.doubt.members, one.doubt.spread, one.doubt.auroc])
    if not bars:
        return None
    plot = interval_plot("Accuracy by disagreement", bars, x="share that is right")
    columns = ["", "members", "standard deviation of a margin", "AUROC of wrong by disagreement"]
    text = (
        "How far the members of an ensemble disagree, a quarter of the comparisons each, from the least to the most. "
        "Where accuracy doesn't fall, their disagreement says nothing: an AUROC of 0.5."
    )
    return Section("Doubt", [Figures([plot]), Table(columns, told)], text)


def robustness(evaluations: Sequence[RewardEvaluation]) -> Section | None:
    """How often small changes turn verdicts; None where none were made."""
    bars: list[Interval] = []
    rows: list[list[Cell]] = []
    for each, one in _in_turns([(one, one.turned) for one in evaluations]):
        label = _of(one, each.change, evaluations)
        bars.append(Interval(label, *each.turned))
        rows.append([label, each.rows, _percents(each.turned), each.shift])
    if not rows:
        return None
    plot = interval_plot("Verdicts that turn", bars, x="share of comparisons", level=0.0)
    columns = ["change", "comparisons", "verdicts that turn", "shift, in standard deviations"]
    text = (
        "Answers are changed in ways that say nothing, and scored again: how often another answer is then at the top. "
        "The changes are made in all answers of a prompt, but for the one that names its answer. Answers in the other "
        "order must turn nothing."
    )
    return Section("Robustness", [Figures([plot]), Table(columns, rows)], text)


PARTS = (subsets, raters, margins, calibration, biases, best_of, doubts, robustness)
"""In the order of the report."""


def _in_turns(
    found: Sequence[tuple[RewardEvaluation, Sequence[Any]]],
) -> list[tuple[Any, RewardEvaluation]]:
    """Parts of several evaluations, those of one place beside each other."""
    longest = max(len(parts) for _, parts in found)
    return [(parts[i], one) for i in range(longest) for one, parts in found if i < len(parts)]


def percent(value: float) -> str:
    """A share for people, with a space that no line parts."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _percents(found: Estimate) -> str:
    if math.isnan(found.value):
        return "–"
    return f"{percent(found.value)} {_ends(100 * found.low, 100 * found.high, '.1f')}"


def _with_interval(found: Estimate) -> str:
    return f"{found.value:.3g} {_ends(found.low, found.high, '.3g')}"


def span(found: Estimate, *, signed: bool = False, scale: float = 100) -> str:
    """An interval as it stands behind a label; `scale` 100 makes points of shares."""
    if math.isnan(found.low):
        return ""
    form = "+z.2f" if scale == 1 else ("+z.1f" if signed else ".1f")
    return f", 95 %: {scale * found.low:{form}} to {scale * found.high:{form}}"


def _ends(low: float, high: float, form: str) -> str:
    """Ends of an interval, which no line parts."""
    return f"({low:{form}} to {high:{form}})".replace(" ", "\N{NO-BREAK SPACE}")
