"""What comes with the package beside code: configurations and the pages of metrics, in a wheel as in a checkout."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.errors import ConfigurationError, did_you_mean, near

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

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PART = re.compile(r"^(?P<key>\w+): (?P<path>\S+\.yaml)(?P<comment> *#.*)?$")


def shipped(name: str) -> Path:
    """A directory that lies in the wheel's package, and in a checkout beside it."""
    package = Path(__file__).parents[1]
    return next(path for path in (package / name, package.parent / name) if path.is_dir())


def load_yaml(text: str) -> Any:
    """What a text says in YAML, read by PyYAML's parser in C where it has one: in a tenth of the time.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=_LOADER)  # noqa: S506 - either is the safe one


def config_names() -> list[str]:
    """Names of the shipped configurations and overlays, such as `policy/ppo_lora`."""
    root = shipped("configs")
    files = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] != "parts")


def find_config(name: str) -> Path:
    """A configuration's file: the user's own, or else the shipped one of that name.

    Args:
        name: A path; `policy/ppo_lora`, with `configs/` before it or `.yaml` behind it or not; the name of a command
            such as `ppo`; or the last part of a name that no other has, such as `rloo` or `tiny`.

    Raises:
        ConfigurationError: There is none; names those that are near.
    """
    if Path(name).is_file():
        return Path(name)
    short = name.removeprefix("configs" + os.sep).removesuffix(".yaml")
    short = RECIPES.get(short, short)
    names = config_names()
    meant = [name for name in names if name == short]
    meant = meant or [n for n in names if n.rpartition("/")[2] in (short, f"{short}_lora")]
    if len(meant) == 1:
        return shipped("configs") / f"{meant[0]}.yaml"
    hint = did_you_mean(meant) or near(short, [*names, *RECIPES], most=3, cutoff=0.5)
    raise ConfigurationError(
        f"There is no file {name!r}, and no shipped configuration of that name.{hint} "
        "`lit-rlhf init` lists those there are."
    )


def with_found_configs(words: Sequence[str]) -> list[str]:
    """The words of a command line with the files of `-c` and `--config` before all other options, which win over them.

    Raises:
        ConfigurationError: A file isn't there, is no YAML, holds no options, or an option twice.
    """
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    files: list[str] = []
    others: list[str] = []
    rest = iter(words[first:])
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in ("-c", "--config") or not (equals or (value := next(rest, ""))):
            others.append(word)
            continue
        path = find_config(value)
        _refuse_misread(path)
        files.append(f"--config={path}")
    return [*words[:first], *files, *others]


def _refuse_misread(path: Path) -> None:
    """Refuse what the parser would say in no file's name, and a key that is written twice: it takes the last alone."""
    try:
        text = path.read_text(encoding="utf-8")
        load_yaml(text)
        root = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        what = "holds no options" if root is None else "is no mapping of options, {name: value}"
        raise ConfigurationError(
            f"{path} {what}: leave it out, or write some as `lit-rlhf init` does."
        )
    for first, second, key in _doubles(root, ""):
        raise ConfigurationError(
            f"{path} has {key} twice, in lines {first} and {second}, of which the last alone would count. Put what "
            "stands under both under one."
        )


def _doubles(node: yaml.Node, place: str) -> Iterator[tuple[int, int, str]]:
    """Lines and full name of each key that stands twice in a mapping, or in one within it."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _doubles(each, place)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = f"{place}{key.value}", key.start_mark.line + 1
            if name in lines:
                yield lines[name], line, name
            lines[name] = line
            yield from _doubles(value, f"{name}.")


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
