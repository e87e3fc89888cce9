"""An estimate for people to read."""

from rich.console import Group, RenderableType
from rich.table import Table

from lit_rlhf.estimate.estimating import Estimate


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.2f}"


def table(found: Estimate) -> RenderableType:
    """Memory by part and phase, seconds by phase, and what was assumed."""
    load = found.workload
    held = [phase for phase in found.phases if phase.parts]
    names = list(dict.fromkeys(name for phase in held for name in phase.parts))
    memory = Table("GiB", title=f"Memory of a process on {found.card} at the peak of each phase")
    for phase in held:
        memory.add_column(phase.name, justify="right")
    for name in sorted(names, key=lambda name: -max(p.parts.get(name, 0) for p in held)):
        cells = [gib(phase.parts[name]) if name in phase.parts else "" for phase in held]
        memory.add_row(name, *cells)
    memory.add_section()
    memory.add_row("all", *(gib(phase.total) for phase in held), style="bold")
    seconds = Table("seconds", title=f"Time of a step on {found.processes} process(es)")
    for phase in found.phases:
        seconds.add_column(phase.name, justify="right")
    seconds.add_column("all", justify="right")
    for label, values in (
        ("at the card's peaks", [phase.at_least for phase in found.phases]),
        ("likely", [phase.likely for phase in found.phases]),
    ):
        seconds.add_row(label, *(f"{value:.3g}" for value in (*values, sum(values))))
    about = (
        f"A step of a process: {load.prompts} prompts of {load.prompt_tokens} tokens with {load.branches} "
        f"completion(s) of {load.completion_tokens}; microbatches of {found.rows} rows."
    )
    return Group(about, memory, seconds, *found.notes)
