"""What comes with the package beside code: configurations and the pages of metrics, in a wheel as in a checkout."""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from lit_rlhf.errors import ConfigurationError

RECIPES = {
    "sft": "sft/lora",
    "reward": "reward/lora",
    "dpo": "preference/dpo_lora",
    "kto": "preference/kto_lora",
    "ppo": "policy/ppo_lora",
    "grpo": "policy/grpo_lora",
}
"""The configuration behind each command that trains in one line."""

SCORED = ("ppo", "grpo")
"""Those that need a reward."""

_PART = re.compile(r"^(?P<key>\w+): (?P<path>\S+\.yaml)(?P<comment> *#.*)?$")


def shipped(name: str) -> Path:
    """A directory that lies in the wheel's package, and in a checkout beside it."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / name, package.parent / name) if path.is_dir())


def config_names() -> list[str]:
    """Names of the shipped configurations and overlays, such as `policy/ppo_lora`."""
    root = shipped("configs")
    files = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] != "parts")


def find_config(name: str) -> Path:
    """A configuration's file: the user's own, or else the shipped one of that name.

    Args:
        name: A path; `policy/ppo_lora`, with `configs/` before it or `.yaml` behind it or not; or the name of a
            command such as `ppo`.

    Raises:
        ConfigurationError: There is none; names those that are near.
    """
    if Path(name).is_file():
        return Path(name)
    short = name.removeprefix("configs" + os.sep).removesuffix(".yaml")
    short = RECIPES.get(short, short)
    names = config_names()
    if short in names:
        return shipped("configs") / f"{short}.yaml"
    near = get_close_matches(short, [*names, *RECIPES], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ConfigurationError(
        f"There is no file {name!r}, and no shipped configuration of that name.{hint} "
        "`lit-rlhf init` lists those there are."
    )


def with_found_configs(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the file in place of each name behind `-c` or `--config`."""
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if found and found[-1] in ("-c", "--config"):
            found.append(str(find_config(word)))
        elif equals and option in ("-c", "--config"):
            found.append(f"{option}={find_config(value)}")
        else:
            found.append(word)
    return found


def whole_text(path: Path) -> str:
    """A configuration with its comments, and with the parts that it names in their places."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        part = _PART.match(line)
        if part is None:
            lines.append(line)
            continue
        lines.append(f"{part['key']}:{part['comment'] or ''}")
        text = (path.parent / part["path"]).read_text(encoding="utf-8")
        lines += [f"  {inner}" for inner in text.splitlines() if not inner.startswith("#")]
    return "\n".join(lines) + "\n"
