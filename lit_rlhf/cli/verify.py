"""`lit-rlhf verify`: every method against the optimum that it claims."""

import json
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import pairwise

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from lit_rlhf.cli.output import print_text
from lit_rlhf.cli.refusals import describe, own_error
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.modules import PolicyModule, RLHFModule
from lit_rlhf.verify import Case, VerifyRow, all_cases, cases_of, verify_case
from lit_rlhf.verify.custom import custom_cases
from lit_rlhf.verify.runner import GRADIENT_TOLERANCE

_PLACEHOLDERS = {"backbone.name": "tabular", "reward": "LengthReward"}
"""What is set unless the user does: the tabular world has a policy and rewards of its own."""


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it; exits with status 1 if a method misses its target."""
    words = list(words[1:])
    parser = _parser()
    try:
        options = parser.parse_args([*words, *_placeholders(words)])
    except ArgumentError as error:
        raise own_error(error) or ConfigurationError(describe(str(error), "verify")) from error
    if options.model is not None:
        cases: Iterable[Case] = custom_cases(lambda: parser.instantiate_classes(options).model)
    elif options.methods is not None:
        cases = cases_of([options.methods] if isinstance(options.methods, str) else options.methods)
    else:
        cases = all_cases().values()
    rows = map(verify_case, cases)
    if options.json:
        done = list(rows)
        print_text(json.dumps([asdict(row) for row in done], indent=2) + "\n")
    else:
        done = _print_table(rows)
    if not all(row.ok for row in done):
        raise SystemExit(1)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lit-rlhf verify",
        exit_on_error=False,
        description="Hold every method to the optimum that it claims: in a world whose completions can be enumerated, "
        "the expected gradient at the target must vanish, and training from the reference must arrive there.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument(
        "--methods",
        type=list[str] | str | None,
        default=None,
        help="a method or a list of them, such as RLOO or '[DPO, \"PPO (bandit)\"]'; default: all",
    )
    parser.add_subclass_arguments(
        RLHFModule,
        "model",
        required=False,
        help="a module of your own: --model.class_path mine.MyMethod; its target is pi* = ref exp(r/beta), or what its "
        "method tabular_optimum(world) returns",
    )
    return parser


def _placeholders(words: Sequence[str]) -> Iterator[str]:
    given = " ".join(words)
    flags = ("--model", "--model.class_path")
    name = next((after for word, after in pairwise(words) if word in flags), None)
    if name is None:
        return
    home, _, leaf = name.rpartition(".")
    try:
        found = getattr(import_module(home or "lit_rlhf.modules"), leaf)
    except (ImportError, AttributeError):
        return  # the parser says so
    needed = ["backbone.name", *(["reward"] if issubclass(found, PolicyModule) else [])]
    for option in needed:
        if f".{option}" not in given:
            yield from (f"--model.init_args.{option}", _PLACEHOLDERS[option])


def _print_table(rows: Iterable[VerifyRow]) -> list[VerifyRow]:
    console = Console()
    columns = ("method", "target", "|gradient|", "distance", "", "s")
    table = Table(title="Methods at their targets")
    for name in columns:
        words = name in ("method", "target")  # wrap where they must, at spaces; figures don't
        table.add_column(
            name, overflow="fold", justify="left" if words else "right", no_wrap=not words
        )
    done: list[VerifyRow] = []
    with console.status("verifying") as status:
        for row in rows:
            status.update(f"{len(done) + 1}: {row.method}")
            figures = f"{row.gradient_norm:.1e}", f"{row.distance:.1e}"
            verdict = "ok" if row.ok else "[bold red]misses"
            table.add_row(row.method, row.target, *figures, verdict, f"{row.seconds:.1f}")
            done.append(row)
    console.print(table)
    for row in done:
        if not row.ok:
            console.print(f"{row.method}: {_miss(row)}", highlight=False, soft_wrap=True)
    console.print(f"{sum(row.ok for row in done)} of {len(done)} at their targets", highlight=False)
    return done


def _miss(row: VerifyRow) -> str:
    """What its figures say."""
    if "off-policy" in row.target:
        return "the gradient on samples of an earlier policy isn't that of its surrogate (|gradient|: the difference)."
    if not row.gradient_norm < GRADIENT_TOLERANCE:
        return f"at the target its expected gradient is {row.gradient_norm:.1e} and not 0: its optimum is another."
    return (
        f"at the target its expected gradient is 0, but training ends {row.distance:.1e} away from there, in total "
        "variation: is a sign turned, or a term lost?"
    )
