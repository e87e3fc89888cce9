"""A round, and the steps that it is made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lit_rlhf.seeding import stable_hash


class FileOptions(Mapping[str, Any]):
    """Options as a file has them, for the command that reads them.

    No dict: in one, the parser of the command line would take each `class_path` for its own.

    Args:
        values: The options.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


if TYPE_CHECKING:
    Options: TypeAlias = Mapping[str, Any]
else:
    Options = FileOptions
"""Options of a command: any mapping in Python; what the command line makes of them."""


@dataclass(frozen=True)
class Step:
    """One command of a round, done once its result is there: results are written whole or not at all.

    Args:
        name: What the file with its options is called.
        words: The command and its arguments. Empty: nothing is run, and `result` is waited for.
        result: File or directory that it leaves.
        options: Its options, as a configuration file has them.
        configs: Configurations that come before the options.
        run_dir: Directory of the run, where it trains.
        ask: Where nothing is run: what is to be done, for people.
        reads: Files of rows, made by no step, that it reads in this round or a later one.
    """

    name: str
    words: tuple[str, ...]
    result: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    run_dir: Path | None = None
    ask: str = ""
    reads: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self.result.exists()


@dataclass(frozen=True)
class Round:
    """What a method knows when it plans a round.

    Args:
        number: From 0.
        root: Directory of all rounds.
        initial: The policy that the first round started from.
        policy: The policy that this one starts from.
        seed: Of all rounds.
    """

    number: int
    root: Path
    initial: str
    policy: str
    seed: int = 0

    @property
    def directory(self) -> Path:
        """Where all that the round makes lies."""
        return self.at(self.number)

    @property
    def result(self) -> Path:
        """The policy that the round ends with."""
        return self.directory / "policy" / "export"

    def at(self, number: int) -> Path:
        """Directory of a round."""
        return self.root / f"round-{number:02d}"

    def files(self, name: str, every: bool = False) -> list[Path]:
        """A file that this round makes; or those of all rounds so far, the oldest first."""
        return [
            self.at(number) / name for number in range(0 if every else self.number, self.number + 1)
        ]

    def seed_of(self, step: str) -> int:
        """A seed for a step, another one in each round."""
        return stable_hash(self.seed, self.number, step) % 2**31

    def fill(self, options: Any) -> Any:
        """Options with the round's names in place of `{policy}`, `{initial}` and `{round}`, wherever text stands.

        Example:
            >>> Round(1, Path("runs"), "m", "runs/round-00/policy/export").fill(
            ...     {"name": "{initial}"}
            ... )
            {'name': 'm'}
        """
        return fill(options, policy=self.policy, initial=self.initial, round=str(self.number))


def fill(options: Any, **names: str) -> Any:
    """Options with each `{name}` in a text replaced; other braces stay."""
    if isinstance(options, Mapping):
        return {key: fill(value, **names) for key, value in options.items()}
    if isinstance(options, list | tuple):
        return [fill(value, **names) for value in options]
    if isinstance(options, str):
        for name, value in names.items():
            options = options.replace(f"{{{name}}}", value)
    return options


def merged(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options, those of `others` before the first's.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
        {'a': {'b': 1, 'c': 3}}
    """
    found = dict(options)
    for name, value in others.items():
        mine = found.get(name)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            found[name] = merged(mine, value)
        else:
            found[name] = value
    return found
