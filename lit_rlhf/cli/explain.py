"""`lit-rlhf help metrics NAME` and `help option NAME`: what the documentation says of a metric or an option."""

import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NamedTuple

import docstring_parser

from lit_rlhf.cli.commands import COMMANDS, usage
from lit_rlhf.cli.output import print_text
from lit_rlhf.cli.shipped import shipped
from lit_rlhf.errors import ConfigurationError, near

_PACKAGES = ("modules", "objectives", "models", "data", "rewards", "rollout", "callbacks")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


class Metric(NamedTuple):
    """A row of the pages of metrics."""

    names: list[str]
    page: str
    unit: str
    healthy: str
    otherwise: str


class Option(NamedTuple):
    """An option of a class, as its docstring explains it."""

    owner: str
    name: str
    default: str
    text: str


def metrics() -> Iterator[Metric]:
    """All rows of the tables of `docs/modules`."""
    for page in sorted(shipped("docs/modules").glob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [_LINK.sub(r"\1", cell).strip() for cell in line.split("|")[1:-1]]
            if len(cells) == 4 and (names := re.findall(r"`([^`]+)`", cells[0])):
                yield Metric(names, page.stem, *cells[1:])


def options() -> Iterator[Option]:
    """The explained options of all classes that a configuration names: ours, and those of Lightning and torch."""
    homes = [vars(import_module(f"lit_rlhf.{package}")) for package in _PACKAGES]
    classes = [found for home in homes for found in home.values() if isinstance(found, type)]
    bases = [base for kind in classes for base in kind.__mro__]
    known = [base for base in bases if base.__module__.startswith("lit_rlhf.")]
    known = [base for base in known if not issubclass(base, Exception)]
    trainer = import_module("lightning.pytorch").Trainer
    steps = [import_module("torch.optim").AdamW, import_module("torch.optim.lr_scheduler").LinearLR]
    for kind in dict.fromkeys([*known, trainer, *steps]):
        text = inspect.getdoc(kind.__init__ if kind.__name__ == "Trainer" else kind)
        defaults = inspect.signature(kind).parameters
        for found in docstring_parser.parse(text or "").params:
            if (given := defaults.get(found.arg_name)) is not None:
                default = "" if given.default is inspect.Parameter.empty else f"{given.default!r}"
                said = " ".join((found.description or "").split())
                yield Option(kind.__name__, found.arg_name, default, said)


def explain_metric(name: str) -> str:
    """What the pages say of a metric, or of all whose names hold this one."""

    def stands_for(pattern: str) -> bool:  # in the pages' names, <part> is any
        return re.fullmatch(re.sub(r"<\w+>", "[^ ]+", pattern), name) is not None

    rows = list(metrics())
    exact = [row for row in rows if any(stands_for(known) for known in row.names)]
    found = exact or [row for row in rows if any(name in known for known in row.names)]
    if not found:
        raise _unknown("metric", name, [known for row in rows for known in row.names])
    return "\n".join(
        f"{', '.join(row.names)}  (docs/modules/{row.page}.md)\n"
        f"  unit:                {row.unit or '-'}\n"
        f"  healthy:             {row.healthy or '-'}\n"
        f"  when it leaves that: {row.otherwise or '-'}\n"
        for row in found
    )


def explain_option(name: str) -> str:
    """What each class says of its option; `beta`, `KTO.beta` or a whole key such as `model.loss.beta`."""
    rows = list(options())
    path, _, last = name.rpartition(".")
    found = [row for row in rows if row.name == last]
    if not found:
        raise _unknown("option", name, [row.name for row in rows])
    owner = path.rpartition(".")[2]
    found = [row for row in found if row.owner == owner] or found
    return "\n".join(
        f"{row.owner}.{row.name}{f', default {row.default}' if row.default else ''}\n  {row.text}\n"
        for row in found
    )


def _unknown(what: str, name: str, known: list[str]) -> ConfigurationError:
    hint = near(name, dict.fromkeys(known), most=3, cutoff=0.5)
    return ConfigurationError(f"No {what} {name!r} is known.{hint}")


def run(words: Sequence[str]) -> None:
    """Parse a command line and answer it."""
    answers = {"metrics": explain_metric, "option": explain_option}
    asked = words[1:]
    if not asked or "-h" in asked or "--help" in asked:
        print_text(f"{usage()}\n")
    elif len(asked) == 2 and asked[0] in answers:
        print_text(answers[asked[0]](asked[1]))
    else:
        raise ConfigurationError(
            "It is `lit-rlhf help COMMAND`, `lit-rlhf help metrics NAME` or `lit-rlhf help option NAME`; lit-rlhf help "
            f"--help lists commands.{near(asked[0], COMMANDS) if len(asked) == 1 else ''}"
        )
