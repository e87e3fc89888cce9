"""The report of runs: one page for one run, or several beside each other."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_rlhf.callbacks.summary import duration
from lit_rlhf.report.curves import (
    TOLD,
    Group,
    against_each_other,
    columns,
    curve_sections,
    group_by_seed,
    spreads,
    values_of,
)
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
    with_error,
    write_page,
)
from lit_rlhf.report.runs import Run, read_runs

_PROMPTS, _TIMES, _NAMED = 8, 4, 3


def report_runs(paths: Sequence[Path], output: Path) -> Path:
    """Write the report of one run, or the comparison of several.

    Args:
        paths: Directories of runs.
        output: The HTML file; its numbers lie as JSON beside it.

    Returns:
        The HTML file.

    Raises:
        DataError: A path is no run's directory, is named twice, or has no metrics yet.
        FileError: The report can't be written.
    """
    runs = read_runs(list(paths))
    groups = group_by_seed(runs)
    named = len(groups) <= _NAMED
    title = " | ".join(each.name for each in groups) if named else f"{len(runs)} runs"
    sections: list[Section | None] = [
        Section("At a glance", [*_glance(runs, groups), *_notes(runs)])
    ]
    if len(runs) > 1:
        sections.append(_differences(groups))
        told = "Means over the last tenth of each run; the interval is of their mean (Student's t), of three or more."
        for group in (group for group in groups if len(group.runs) > 1):
            rows: list[list[Cell]] = [[label, *cells] for label, cells in spreads(group).items()]
            table = Table(["metric", *columns(group)], rows, told)
            sections.append(Section(f"Seed by seed: {group.name}", [table]))
    sections += [*curve_sections(groups), against_each_other(groups)]
    sections += [_events(runs), _samples(runs), _phases(runs), _again(runs)]
    modules = ", ".join(
        dict.fromkeys(run.record["module"] for run in runs if "module" in run.record)
    )
    data = {"runs": values_of(groups), "options_that_differ": _differing(groups)}
    return write_page(output, f"Report: {title}", sections, modules, data)


def _glance(runs: Sequence[Run], groups: Sequence[Group]) -> list[Block]:
    ends = [
        (label, found)
        for metric, label in TOLD
        if any(found := [group.final(metric) for group in groups])
    ]
    if len(runs) == 1:
        items: list[tuple[Cell, str]] = [
            (end[0], label) for label, found in ends if (end := found[0]) is not None
        ]
        items.append((max(row["iteration"] for row in runs[0].metrics), "iterations"))
        if runs[0].starts:
            seconds = sum(start.get("seconds") or 0.0 for start in runs[0].starts)
            items += [(duration(seconds), "in training")]
            items += [(runs[0].starts[-1].get("state"), "state")]
        return [Numbers(items)]
    rows: list[list[Cell]] = []
    for number, group in enumerate(groups):
        run = group.runs[0]
        state = ", ".join(
            dict.fromkeys(r.starts[-1].get("state", "–") for r in group.runs if r.starts)
        )
        most = max(row["iteration"] for row in run.metrics)
        rows.append([group.name, len(group.runs), state or None, most])
        rows[-1] += [with_error(*(found[number] or (None, None))) for _, found in ends]
    columns = ["run", "seeds", "state", "iterations", *(label for label, _ in ends)]
    told = (
        "Means over the last tenth of each run; "
        "of three seeds or more with the 95 % interval of their mean (Student's t)."
    )
    return [Table(columns, rows, told)]


def _notes(runs: Sequence[Run]) -> list[Note]:
    return [
        replace(note, text=f"{run.name}: {note.text}") if len(runs) > 1 else note
        for run in runs
        for note in _notes_of(run)
    ]


def _notes_of(run: Run) -> Iterator[Note]:
    last = run.starts[-1] if run.starts else {}
    if last.get("state") in ("failed", "interrupted"):
        text = (
            f"{last['state']} after iteration {last.get('iterations')}. {last.get('reason') or ''}"
        )
        yield Note(text, bad=True)
    elif last.get("state") == "running":
        yield Note("no end was written: it is still running, or it was killed.")
    if skipped := max((y or 0 for y in run.curve("train/skipped_steps")[1]), default=0):
        yield Note(f"{skipped:.0f} optimizer steps were skipped, for their gradient wasn't finite.")
    for file, count in run.damaged.items():
        yield Note(f"{count} lines of {file} can't be read and are left out.")
    for name, rows in run.record.get("rows", {}).items():
        if left := sum(rows.get("left_out", {}).values()):
            why = ", ".join(f"{count} {reason}" for reason, count in rows["left_out"].items())
            which = f"{rows['unit']} of {rows['source']} ({name})"
            yield Note(f"{left} {which} were left out: {why}.")


def _differing(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Options in which groups differ, with the value of each."""
    options = {group.name: group.runs[0].settled() for group in groups}
    names = dict.fromkeys(name for each in options.values() for name in each)
    return {
        name: {run: each.get(name) for run, each in options.items()}
        for name in names
        if len({repr(each.get(name)) for each in options.values()}) > 1
    }


def _differences(groups: Sequence[Group]) -> Section:
    blocks: list[Block] = []
    unknown = [run.name for group in groups for run in group.runs if not run.config]
    if unknown:
        blocks.append(Note(f"No configuration was found of {', '.join(unknown)}."))
    differing = _differing([group for group in groups if group.runs[0].config])
    named = [group.name for group in groups if group.runs[0].config]
    if differing:
        rows = [
            [name, *(_shown(values[run]) for run in named)] for name, values in differing.items()
        ]
        marked = frozenset(range(len(rows)))
        blocks.append(Table(["option", *named], rows, marked=marked, mark="differs between runs"))
    text = (
        "Seeds and places are left out; all other options are the same."
        if differing
        else "No option but seeds and places."
    )
    return Section("What differs", blocks, text)


def _shown(value: Any) -> Cell:
    return value if isinstance(value, str | int | float | None) else str(value)


def _events(runs: Sequence[Run]) -> Section | None:
    rows = [
        [run.name, event.get("iteration"), event.get("text")]
        for run in runs
        for start in run.starts
        for event in start.get("events", [])
    ]
    resumed = [
        [run.name, None, f"Started again from {start['resumed_from']}."]
        for run in runs
        for start in run.starts
        if start.get("resumed_from")
    ]
    table = Table(["run", "iteration", "what happened"], [*rows, *resumed])
    return Section("Events", [table]) if table.rows else None


def _samples(runs: Sequence[Run]) -> Section | None:
    """The same prompt over iterations; of several runs, what each answered last."""
    by_prompt: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run.samples:
            if isinstance(row.get("prompt"), str):
                by_prompt.setdefault(row["prompt"], {}).setdefault(run.name, []).append(row)
    if not by_prompt:
        return None
    # Prompts that all runs answered, and answered most often, say most.
    best = sorted(
        by_prompt.items(),
        key=lambda item: (
            -len(item[1]),
            -len({row["iteration"] for rows in item[1].values() for row in rows}),
        ),
    )[:_PROMPTS]
    found = [_sample(prompt, answers, several=len(runs) > 1) for prompt, answers in best]
    text = (
        "The last answers of each run to the same prompts."
        if len(runs) > 1
        else "What the policy wrote for the same prompt as training went on, with the reward's score."
    )
    return Section("Samples", [Samples(found, shown=4)], text)


def _sample(prompt: str, answers: dict[str, list[dict[str, Any]]], *, several: bool) -> Sample:
    texts = [("prompt", prompt)]
    for name, rows in answers.items():
        first = {row["iteration"]: row for row in reversed(rows)}  # one of each iteration
        times = sorted(first)
        spread = {times[i * (len(times) - 1) // (_TIMES - 1)] for i in range(_TIMES)}
        chosen = times[-1:] if several else sorted(spread)
        for time in chosen:
            score = first[time].get("score")
            said = f", score {score:.4g}" if isinstance(score, int | float) else ""
            label = f"{name}, iteration {time}{said}" if several else f"iteration {time}{said}"
            texts.append((label, str(first[time].get("response"))))
    return Sample(texts)


def _phases(runs: Sequence[Run]) -> Section | None:
    columns = ["run", "phase", "seconds", "share", "tokens", "tokens/s", "utilisation"]
    rows: list[list[Cell]] = []
    for run in runs:
        for row in run.profile.get("phases", []):
            keys = ("phase", "seconds", "share", "tokens", "tokens_per_second", "utilisation")
            rows.append([run.name, *(row.get(key) for key in keys)])
    return Section("Profile", [Table(columns, rows)]) if rows else None


def _again(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for run in runs:
        where = f"{run.name}: " if len(runs) > 1 else ""
        for start in run.starts:
            if start.get("command"):
                label = "again from its checkpoint" if start.get("resumed_from") else "the command"
                blocks.append(Code(start["command"], f"{where}{label}"))
    if rows := _environment(runs):
        names = [run.name for run in runs if run.starts]
        marked = frozenset(i for i, row in enumerate(rows) if len(set(row[1:])) > 1)
        blocks.append(Table(["environment", *names], rows, marked=marked))
    for run in (run for run in runs if run.config):
        label = f"{run.name}: configuration" if len(runs) > 1 else "Configuration"
        blocks.append(Code(run.config, label, folded=True))
    places = "\n".join(shlex.quote(str(run.path)) for run in runs)
    blocks.append(Code(places, "read from"))
    return Section("To run it again", blocks)


def _environment(runs: Sequence[Run]) -> list[list[Cell]]:
    last = [run.starts[-1] for run in runs if run.starts]
    facts = [
        {key: start.get(key) for key in ("device", "processes", "began")}
        | start.get("versions", {})
        for start in last
    ]
    names = dict.fromkeys(name for each in facts for name in each)
    return [[name, *(each.get(name) for each in facts)] for name in names]
