"""`lit-rlhf init`: a shipped configuration to change, with its comments."""

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.cli.functions import call
from lit_rlhf.cli.output import print_text
from lit_rlhf.cli.shipped import RECIPES, config_names, find_config, shipped, whole_text
from lit_rlhf.files import write_text


def init(name: str | None = None, output: Path | None = None) -> None:
    """Print a shipped configuration with its comments, whole, so that it runs anywhere; without a name, list them.

    Args:
        name: `sft`, `reward`, `dpo`, `kto`, `ppo`, `grpo`, or any name that the list has, such as
            `policy/ppo_nf4_lora`.
        output: File to write; default: standard output.
    """
    text = _list() if name is None else _own(find_config(name), output or Path("my.yaml"))
    if output is None:
        print_text(text)
        return
    write_text(output, text)


def _own(path: Path, target: Path) -> str:
    """The configuration, its first lines speaking of the file that it becomes."""
    home = shipped("configs")
    name = f"configs/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
    return whole_text(path).replace(f"-c {name}", f"-c {target}", 1)


def _list() -> str:
    short = {name: command for command, name in RECIPES.items()}
    width = max(map(len, config_names()))
    lines = []
    for name in config_names():
        text = (shipped("configs") / f"{name}.yaml").read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ").partition(". ")[0].rstrip(".:")
        lines.append(f"{name:<{width}}  {short.get(name, ''):<6}  {title}")
    return "\n".join(lines) + "\n"


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    named = len(words) > 1 and not words[1].startswith("-")
    call(init, ["--name", *words[1:]] if named else words[1:], "init")
