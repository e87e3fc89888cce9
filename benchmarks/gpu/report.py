"""A run as one file, held to an earlier one, and as a page."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.result import Result
from benchmarks.markdown import wrapped

TOLERATED = 0.05
HIGHER = ("tokens_per_s", "tflops", "gb_per_s")
"""Units of which more is better; of `LOWER` less is. Others follow from these."""
LOWER = ("peak_gib", "ms_per_step", "seconds", "waits")
HEADINGS = {
    "seconds": "s a step",
    "first_seconds": "first step, s",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU",
    "ms_per_step": "ms a step",
    "peak_gib": "peak, GiB",
    "reserved_gib": "reserved, GiB",
    "tflops": "TFLOP/s",
    "gb_per_s": "GB/s",
    "waits": "waits",
}
NOT_RUN = """# On a GPU

Not run yet. Nothing of this project was ever run on a GPU; what is meant for one was rehearsed on CPU.
"""
COMMANDS = """
## The command

```bash
python -m benchmarks.gpu --out runs/gpu --keep            # one card, 0.5B shapes of random weights, up to 8 minutes
python -m benchmarks.gpu --out runs/gpu --markdown docs/GPU.md
```

For a machine without network, which has PyTorch's usual stack: `benchmarks/gpu/carry.sh` fetches the wheels that it
lacks into `.whl/` (`STRIP=1` keeps of bitsandbytes what an H100 needs: about 7 MB in all), and there
`benchmarks/gpu/gpu_check.sh` installs them and runs the command. `--size 7b --only machine grpo --budget 600` is a run
of its own. `--device cpu --size tiny` rehearses everything; its numbers mean nothing.
"""


def write_run(
    out: Path, results: Mapping[str, Result], *, device: str, size: str, args: Sequence[str]
) -> None:
    """All parts so far, in `out/run.json`."""
    run = {
        "command": " ".join(["python -m benchmarks.gpu", *args]),
        "device": device,
        "size": size,
        "parts": {name: asdict(result) for name, result in results.items()},
    }
    (out / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")


def read_run(path: Path) -> dict[str, Any]:
    """A run from its directory or its file; without parts where there is none."""
    file = path / "run.json" if path.is_dir() else path
    if not file.is_file():
        return {"command": "", "device": "", "size": "", "parts": {}}
    run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    run["parts"] = {name: Result(**part) for name, part in run["parts"].items()}
    return run


def baseline_of(run: Mapping[str, Any], directory: Path) -> Path:
    """Where the baseline of a run's card and size is, or would be."""
    machine = run["parts"].get("machine", Result())
    card = re.sub(r"\W+", "-", machine.facts.get("card", "unknown").lower()).strip("-")
    return directory / f"{card}-{run['size']}.json"


def worse_than(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a run is worse than in an earlier one by more than is tolerated, a line each; also what is gone."""
    lines = []
    for part, earlier in before["parts"].items():
        later = now["parts"].get(part)
        if later is None:  # it wasn't asked for
            continue
        for name, numbers in earlier.measures.items():
            found = later.measures.get(name)
            if found is None:
                lines.append(f"{part}, {name}: no longer measured")
                continue
            lines += [
                f"{part}, {name}: {unit} {found[unit]:.4g}, was {value:.4g}"
                for unit, value in numbers.items()
                if unit in found and _is_worse(unit, value, found[unit])
            ]
    return lines


def page(run: Mapping[str, Any]) -> str:
    """docs/GPU.md of a run: what was run on what, checks, measures; or that nothing was."""
    parts: Mapping[str, Result] = run["parts"]
    if not parts or run["device"] != "cuda":
        return NOT_RUN + COMMANDS
    facts = parts["machine"].facts if "machine" in parts else {}
    lines = [
        "# On a GPU",
        "",
        f"Written by `benchmarks/gpu` from a run of `{run['command']}`: random weights of the shapes {run['size']}.",
        ", ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        *(line for note in run.get("notes", []) for line in ("", note)),
        "",
        "## Right",
        "",
        *_checks(parts),
        "",
        "## Fast",
        "",
        "The first step of each is left out. MFU is held to the product that the card reached in this run.",
    ]
    for name, part in parts.items():
        if part.measures:
            lines += ["", f"### {name}", "", *_table(part)]
            said = part.facts.items() if name != "machine" else ()
            lines += [line for what, fact in said for line in ("", f"{what}: {fact}.")]
    return wrapped("\n".join(lines)) + "\n" + COMMANDS


def _is_worse(unit: str, before: float, now: float) -> bool:
    if unit in HIGHER:
        return now < before * (1 - TOLERATED)
    return unit in LOWER and now > before * (1 + TOLERATED)


def _checks(parts: Mapping[str, Result]) -> list[str]:
    lines = ["| part | check | value | at most | |", "|---|---|---|---|---|"]
    for part, result in parts.items():
        lines += [
            f"| {part} | {name} | {check['value']:.2g} | {check['limit']:.2g} | "
            f"{'holds' if check['holds'] else '**fails**'} |"
            for name, check in result.checks.items()
        ]
        lines += [
            f"| {part} | {name} | | | **{_cell(said)}** |" for name, said in result.failures.items()
        ]
    return lines


def _table(part: Result) -> list[str]:
    units = [unit for unit in HEADINGS if any(unit in row for row in part.measures.values())]
    heads = " | ".join(HEADINGS[unit] for unit in units)
    lines = [f"| | {heads} |", "|---" * (len(units) + 1) + "|"]
    for name, row in part.measures.items():
        cells = " | ".join(_number(unit, row.get(unit)) for unit in units)
        lines.append(f"| {name} | {cells} |")
    return lines


def _number(unit: str, value: float | None) -> str:
    if value is None:
        return ""
    if unit == "mfu":
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "/")
