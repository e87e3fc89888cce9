"""What a model card says of the training, from the run's directory."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from lit_rlhf.report.curves import Group, spreads
from lit_rlhf.report.page import format_cell
from lit_rlhf.report.runs import Run, read_runs

_TOLD = (
    *("model.loss", "model.kl", "model.reward", "model.value", "model.surrogate"),
    *("model.advantage", "model.lr_scheduler.class_path", "model.updates", "model.sampling"),
    *(f"model.optimizer.{name}" for name in ("class_path", "lr", "betas", "weight_decay")),
    *("model.gae", "model.backbone.lora", "model.backbone.quantization", "data.batch_size"),
    *("data.max_prompt_length", "data.max_completion_length", "trainer.max_epochs"),
)
_PACKAGES = ("lit-rlhf", "torch", "transformers", "peft")


def training_lines(directory: Path) -> list[str]:
    """Data, method and figures of a run, in Markdown.

    Raises:
        DataError: It is no run's directory.
    """
    (run,) = read_runs([directory])
    lines = [*_data(run), *_method(run)]
    if found := spreads(Group(run.name, [run])):
        lines += ["", "## Figures", "", "Means over the last tenth of the run.", ""]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {label} | {format_cell(cells[0])} |" for label, cells in found.items()]
    return lines


def _data(run: Run) -> Iterator[str]:
    rows: Mapping[str, Any] = run.record.get("rows", {})
    if not rows:
        return
    yield from ("", "## Data", "", "| part | source | used | left out |", "|---|---|---|---|")
    for name, part in rows.items():
        left = ", ".join(f"{count} {why}" for why, count in part["left_out"].items()) or "none"
        yield f"| {name} | {without_directories(part['source'])} | {part['used']} {part['unit']} | {left} |"


def _method(run: Run) -> Iterator[str]:
    yield from ("", "## Method", "", f"`{run.record.get('module', 'a module')}` of lit_rlhf.")
    options = run.settled()
    told = {n: v for n, v in options.items() if n.startswith(_TOLD) and v not in (None, [], {})}
    if told:
        yield from ("", "| option | value |", "|---|---|")
        yield from (
            f"| `{name}` | `{without_directories(value)}` |" for name, value in told.items()
        )
    last: Mapping[str, Any] = run.starts[-1] if run.starts else {}
    if last:
        had = last["versions"]
        versions = ", ".join(f"{name} {had[name]}" for name in _PACKAGES if name in had)
        minutes = sum(start["seconds"] for start in run.starts) / 60
        where = f"{last['processes']} x {last['device']}"
        yield from (
            "",
            f"{last['iterations']} iterations, {minutes:.1f} minutes on {where}; {versions}.",
        )


def without_directories(value: object) -> str:
    """A value as text; of an absolute path the last part alone, for the others are of this machine.

    Example:
        >>> without_directories("/home/me/data/pairs.jsonl"), without_directories("org/data")
        ('pairs.jsonl', 'org/data')
    """
    text = str(value)
    return PurePath(text).name if PurePath(text).is_absolute() else text
