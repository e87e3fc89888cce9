"""The report of rounds of `lit-rlhf iterate`: what each came to, what it cost, and the answers over the rounds."""

import json
from pathlib import Path
from typing import Any

from lit_rlhf.errors import DataError
from lit_rlhf.files import read_lines
from lit_rlhf.report.curves import curve_sections, group_by_seed
from lit_rlhf.report.line_plot import Series, line_plot
from lit_rlhf.report.page import (
    Block,
    Cell,
    Code,
    Figures,
    Note,
    Numbers,
    Sample,
    Samples,
    Section,
    Table,
    with_error,
    write_page,
)
from lit_rlhf.report.plots import scatter_plot
from lit_rlhf.report.runs import read_runs

ROUNDS = "rounds.json"
"""Name of the record in the directory of the rounds."""

_SAMPLES = "evaluation.jsonl"
_PROMPTS = 8
_TOLD = {
    "score": "mean score of the evaluation",
    "kl": "KL to the first policy, nats per completion",
    "agreement": "agreement of judge and labels",
    "reward_accuracy": "accuracy of the reward model, validation",
    "collected_score": "mean score of what was collected",
    "finished": "share of completions that ended",
    "rows": "rows collected",
    "position_bias": "position bias of the judge, on the labels",
    "judge_position_bias": "position bias of the judge, on the samples",
}


def report_rounds(root: Path, output: Path) -> Path:
    """Write the report of rounds.

    Args:
        root: Their directory.
        output: The HTML file; its numbers lie as JSON beside it.

    Raises:
        DataError: It is no directory of rounds.
        FileError: The report can't be written.
    """
    path = root / ROUNDS
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rounds: dict[str, dict[str, Any]] = record["rounds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root} holds no rounds that can be read: {path} ({error}).") from error
    sections: list[Section | None] = [Section("At a glance", _glance(record, rounds))]
    if plots := _plots(rounds):
        sections.append(Section("Round by round", [Figures(plots)]))
    if samples := _samples(root, rounds):
        text = "What each policy wrote for the same prompt, drawn with the same seed."
        sections.append(Section("Samples", [samples], text))
    runs = [root / f"round-{_padded(key)}" / "policy" for key in rounds]
    runs = [run for run in runs if (run / "metrics.jsonl").is_file()]
    if runs:
        sections += curve_sections(group_by_seed(read_runs(runs)))
    sections.append(_steps(rounds))
    title = f"Rounds: {record['method']} from {record['policy']}"
    return write_page(output, title, sections, str(root), record)


def _glance(record: dict[str, Any], rounds: dict[str, dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    if record["reason"]:
        bad = record["state"] != "waiting"
        blocks.append(Note(f"{record['state'].capitalize()}: {record['reason']}", bad=bad))
    done = {key: each for key, each in rounds.items() if each["measures"]}
    names = [name for name in _TOLD if any(name in each["measures"] for each in done.values())]
    scored = {
        key: each["measures"]["score"] for key, each in done.items() if "score" in each["measures"]
    }
    seconds = sum(step["seconds"] for each in rounds.values() for step in each["steps"])
    items: list[tuple[Cell, str]] = [
        (record["state"], "state"),
        (sum(key != "initial" for key in done), "rounds done"),
        (round(seconds), "seconds"),
    ]
    if scored:
        items.append((max(scored, key=lambda key: scored[key]), "the round with the best score"))
    rows: list[list[Cell]] = []
    for key, each in done.items():
        found = each["measures"]
        rows.append([key, *(with_error(found.get(n), found.get(f"{n}_stderr")) for n in names)])
    blocks.append(Numbers(items))
    if rows and names:
        blocks.append(Table(["round", *(_TOLD[name] for name in names)], rows))
    return blocks


def _plots(rounds: dict[str, dict[str, Any]]) -> list[Any]:
    """Measures over the rounds; the first policy stands at 0, and each round's behind it."""
    numbers = {key: 0 if key == "initial" else int(key) + 1 for key in rounds}
    plots: list[Any] = []
    for name, label in _TOLD.items():
        found = {
            numbers[k]: each["measures"][name]
            for k, each in rounds.items()
            if name in each["measures"]
        }
        if len(found) > 1:
            series = Series(name, list(found), list(found.values()))
            plots.append(line_plot(label, [series], x="rounds of training", y=name))
    points = {
        _named(key): ([each["measures"]["kl"]], [each["measures"]["score"]])
        for key, each in rounds.items()
        if {"score", "kl"} <= each["measures"].keys()
    }
    if len(points) > 1:
        plots.append(scatter_plot("What it cost", points, x=_TOLD["kl"], y="score"))
    return plots


def _samples(root: Path, rounds: dict[str, dict[str, Any]]) -> Samples | None:
    texts: dict[str, list[tuple[str, str]]] = {}
    for key in rounds:
        file = root / (key if key == "initial" else f"round-{_padded(key)}") / _SAMPLES
        if not file.is_file():
            continue
        shown: set[str] = set()
        for row in read_lines(file):
            prompt = row.get("prompt", next(iter(row.values())))  # rows keep their columns
            prompt = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
            if prompt not in shown:
                shown.add(prompt)
                score = "none" if row["score"] is None else f"{row['score']:.4g}"
                said = (f"{_named(key)}, score {score}", str(row["response"]))
                texts.setdefault(prompt, [("prompt", prompt)]).append(said)
    if not texts:
        return None
    return Samples([Sample(each) for each in list(texts.values())[:_PROMPTS]], shown=4)


def _steps(rounds: dict[str, dict[str, Any]]) -> Section:
    rows: list[list[Cell]] = [
        [key, step["name"], step["began"], round(step["seconds"], 1)]
        for key, each in rounds.items()
        for step in each["steps"]
    ]
    blocks: list[Block] = [Table(["round", "step", "began", "seconds"], rows)]
    blocks += [
        Code(step["command"], f"round {key}, {step['name']}", folded=True)
        for key, each in rounds.items()
        for step in each["steps"]
    ]
    return Section("Steps", blocks, "Each is a command; its options lie in the round's directory.")


def _named(key: str) -> str:
    return "first policy" if key == "initial" else f"round {key}"


def _padded(key: str) -> str:
    return f"{int(key):02d}" if key.isdigit() else key
