"""Break each loss on purpose, and see that a test notices: run by `make mutations`.

    python tests/mutations.py [names of functions or files ...] [--list]

For every method and function of the preference, reward and policy losses, advantages, reductions and KL estimators,
each of four mutations that applies to its source is made in a temporary copy of the package, and the tests of its file
run there: a sign flipped, the mask dropped, a mean for a sum (or a sum for a mean), the reference forgotten. The
reference is subtracted in one place for all preference losses, which is mutated too. Modules are broken as
`module_mutants.toml` says; `module` as a name chooses those. Prints which test went red; ends with 1 when a mutant
survives.
"""

import argparse
import ast
import importlib
import os
import shutil
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parents[1]
_FUNCTIONAL = "tests/unit/functional"
_OBJECTIVES = "tests/unit/objectives"
_FORMULAS = tuple(
    f"{_OBJECTIVES}/test_{kind}_formulas.py" for kind in ("pairwise", "pointwise", "listwise")
)
_STATE = f"{_OBJECTIVES}/test_preference_state.py"
TESTS = {
    "objectives/pairwise": (_FORMULAS[0], f"{_OBJECTIVES}/test_preference_losses.py", _STATE),
    "objectives/pointwise.py": (_FORMULAS[1], _STATE),
    "objectives/listwise.py": (_FORMULAS[2], _STATE),
    **{
        f"objectives/{name}.py": (
            f"{_OBJECTIVES}/test_reward_formulas.py",
            f"{_OBJECTIVES}/test_reward_losses.py",
        )
        for name in ("reward", "reward_heads")
    },
    **{
        f"objectives/{name}.py": (f"{_OBJECTIVES}/test_{name}.py",)
        for name in (
            "advantages",
            "best_of_n",
            "divergences",
            "oracles",
            "reductions",
        )
    },
    "objectives/surrogates.py": (
        f"{_OBJECTIVES}/test_surrogates.py",
        f"{_OBJECTIVES}/test_importance.py",
    ),
    "objectives/kl_control.py": (
        f"{_OBJECTIVES}/test_kl_control.py",
        f"{_OBJECTIVES}/test_kl_losses.py",
    ),
    "functional/rankings.py": (f"{_OBJECTIVES}/test_reward_formulas.py", _FORMULAS[2]),
    "functional/policy_losses.py": (f"{_FUNCTIONAL}/test_policy_losses.py",),
    "functional/kl.py": (f"{_FUNCTIONAL}/test_kl.py", f"{_FUNCTIONAL}/test_invariances.py"),
    "functional/advantages.py": (f"{_FUNCTIONAL}/test_advantages.py",),
    "functional/rewards.py": (f"{_FUNCTIONAL}/test_rewards.py",),
}
"""What is mutated, and the tests that belong to it."""
REFERENCES = {
    "objectives/preference.py": ("self.logprobs - self.ref_logprobs", _FORMULAS[0]),
}
"""Where the reference is subtracted for every preference loss."""
MODULES = Path(__file__).with_name("module_mutants.toml")
"""Changes of whole modules, each written out, and the rows of `verify` or the tests that notice."""
_ROW = (
    "tests/learning/test_tabular_optimum.py::"
    "test_gradient_vanishes_at_the_target_and_training_arrives"
)
_PYTEST = [
    "-x",
    "-q",
    "-m",
    "not slow and not vllm",  # of walks every step
    "--no-header",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]
_CRASHED = 70
_SWAPS = {"sum": "mean", "mean": "sum", "masked_sum": "masked_mean", "masked_mean": "masked_sum"}


class Mutant(NamedTuple):
    """A changed source file.

    Attributes:
        file: Under `lit_rlhf`.
        function: Where.
        mutation: What was done.
        source: The whole file, changed.
        tests: What should go red.
    """

    file: str
    function: str
    mutation: str
    source: str
    tests: tuple[str, ...]


def flip_sign(function: ast.FunctionDef) -> bool:
    """Turn the last minus or plus between two tensors round, or drop a minus sign.

    The last, for it is the one nearest to the result; those within an index or a keyword (`dim=-1`) are no signs.
    """
    skipped = {
        id(inner)
        for node in ast.walk(function)
        if isinstance(node, ast.Subscript | ast.keyword)
        for inner in ast.walk(node.slice if isinstance(node, ast.Subscript) else node.value)
    }
    skipped |= {id(node.operand) for node in ast.walk(function) if isinstance(node, ast.UnaryOp)}
    signs = [
        node
        for node in _body(function)
        if id(node) not in skipped
        and (
            (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub))
            or (
                isinstance(node, ast.UnaryOp)
                and isinstance(node.op, ast.USub)
                and not _is_axis(node)
            )
        )
    ]
    if not signs:
        return False
    node = max(signs, key=lambda sign: (sign.lineno, -sign.col_offset))
    if isinstance(node, ast.BinOp):
        node.op = ast.Add() if isinstance(node.op, ast.Sub) else ast.Sub()
    else:
        node.op = ast.UAdd()  # type: ignore[attr-defined]
    return True


def drop_mask(function: ast.FunctionDef) -> bool:
    """Take everything for unmasked."""
    return _overwrite(function, "mask", "torch.ones_like({})")


def forget_reference(function: ast.FunctionDef) -> bool:
    """Take the reference's numbers for 0."""
    return _overwrite(function, "ref", "0 * {}")


def swap_mean_and_sum(function: ast.FunctionDef) -> bool:
    """A mean for a sum, or a sum for a mean: the last one.

    The name is imported and a count made a float, lest the mutant crash where it should compute something else.
    """
    calls = []
    for node in _body(function):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in _SWAPS and not _counts(node):
                calls.append((node.lineno, node.col_offset, node.func, _SWAPS[name]))
    if not calls:
        return False
    *_, target, name = max(calls, key=lambda call: call[:2])
    setattr(target, "attr" if isinstance(target, ast.Attribute) else "id", name)
    if name == "mean":
        target.value = ast.BinOp(target.value, ast.Mult(), ast.Constant(1.0))
    elif name.startswith("masked_"):
        _put_first(function, [f"from lit_rlhf.functional.masking import {name}"])
    return True


MUTATIONS: dict[str, Callable[[ast.FunctionDef], bool]] = {
    "flip a sign": flip_sign,
    "drop the mask": drop_mask,
    "mean for sum": swap_mean_and_sum,
    "forget the reference": forget_reference,
}


def mutants(package: Path) -> Iterator[Mutant]:
    """All of them."""
    for place, tests in TESTS.items():
        path = package / place
        for file in [path] if path.is_file() else sorted(path.glob("[!_]*.py")):
            source = file.read_text(encoding="utf-8")
            yield from _mutants_of(source, str(file.relative_to(package)), tests)
    for name, (text, test) in REFERENCES.items():
        forgotten = _replaced(package / name, text, text.split(" - ", maxsplit=1)[0])
        yield Mutant(name, "all losses", "forget the reference", forgotten, (test,))
    for entry in tomllib.loads(MODULES.read_text(encoding="utf-8"))["mutant"]:
        changed = _replaced(package / entry["file"], entry["old"], entry["new"])
        tests = (*entry.get("tests", ()), *(f"{_ROW}[{row}]" for row in entry.get("rows", ())))
        yield Mutant(entry["file"], "module", entry["what"], changed, tests)


def _replaced(path: Path, old: str, new: str) -> str:
    source = path.read_text(encoding="utf-8")
    if source.count(old) != 1:
        raise SystemExit(
            f"{path} has {source.count(old)} times {old!r}: mend REFERENCES in {__file__}, or {MODULES}."
        )
    return source.replace(old, new)


def _mutants_of(source: str, file: str, tests: tuple[str, ...]) -> Iterator[Mutant]:
    for name in _functions(ast.parse(source)):
        for mutation, apply in MUTATIONS.items():
            tree = ast.parse(source)
            if apply(_functions(tree)[name]):
                changed = ast.unparse(ast.fix_missing_locations(tree))
                yield Mutant(file, name, mutation, changed, tests)


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Functions, and the methods of classes that compute: neither constructors nor state nor what is abstract."""
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef):
            found |= {
                f"{owner.name}.{node.name}": node
                for node in owner.body
                if isinstance(node, ast.FunctionDef)
                and (not node.name.startswith("__") or node.name == "__call__")
                and not node.decorator_list
            }
    return found


def _body(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.expr):
                yield node


def _is_axis(node: ast.UnaryOp) -> bool:
    """-1 as an axis; infinities and other numbers are signs."""
    return isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int)


def _counts(node: ast.Call) -> bool:
    """`x.sum(-1)` of a bare mask is a number of tokens, not a reduction of losses; nor is Python's own `sum`."""
    if isinstance(node.func, ast.Name):
        return node.func.id == "sum"
    target = getattr(node.func, "value", None)
    return isinstance(target, ast.Name) and target.id in ("mask", "lengths", "torch")


def _overwrite(function: ast.FunctionDef, part: str, value: str) -> bool:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    names = [arg.arg for arg in arguments if part in arg.arg.split("_")]
    _put_first(function, [f"{name} = {value.format(name)}" for name in names])
    return bool(names)


def _put_first(function: ast.FunctionDef, lines: Sequence[str]) -> None:
    start = 1 if ast.get_docstring(function) is not None else 0
    function.body[start:start] = ast.parse("\n".join(lines)).body


def run(mutant: Mutant, copy: Path) -> str | None:
    """The first test that went red in the copy; None if the mutant survives.

    A child of this process runs them, which has imported what is slow to import: a mutant costs seconds.
    """
    file, log = copy / "lit_rlhf" / mutant.file, copy / "log.txt"
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.source, encoding="utf-8")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _test_in_child(mutant.tests, copy, log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    file.write_text(original, encoding="utf-8")
    if code == 0:
        return None
    output = log.read_text(encoding="utf-8")
    red = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if code != 1 or not red:
        raise SystemExit(f"pytest ended with {code}:\n{output[-4000:]}")
    return red[0].split(" - ")[0].partition(" ")[2].rpartition("/")[2]


def _test_in_child(tests: Sequence[str], copy: Path, log: Path) -> NoReturn:
    """Run tests of the copy and leave with pytest's code."""
    code = _CRASHED
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True  # two mutants of one size in one second are one to the cache
        code = int(pytest.main([*_PYTEST, *tests]))
        sys.stdout.flush()
    finally:
        if code == _CRASHED:
            traceback.print_exc()
        os._exit(code)


def _warm_up() -> None:
    """Import what the package and its tests import of others, once for all children; of the package itself, nothing."""
    for name in (
        "torch",
        "transformers",
        "lightning.pytorch",
        "peft",
        "beartype",
        "jaxtyping",
        "torchmetrics",
    ):
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "lit_rlhf"]
    assert not loaded, (
        f"children would test the package that is imported here, not the copy: {loaded}"
    )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Break each loss on purpose, and see that a test notices."
    )
    parser.add_argument("names", nargs="*", help="functions, or parts of file names; default: all")
    parser.add_argument("--list", action="store_true", help="only say what would be done")
    options = parser.parse_args(args)
    chosen = [
        mutant
        for mutant in mutants(ROOT / "lit_rlhf")
        if not options.names
        or any(name == mutant.function or name in mutant.file for name in options.names)
    ]
    survivors = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        if not options.list:
            for name in ("lit_rlhf", "tests"):
                shutil.copytree(
                    ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            shutil.copy(ROOT / "pyproject.toml", copy)
            _warm_up()
        for mutant in chosen:
            red = "" if options.list else run(mutant, copy)
            survivors += red is None
            outcome = "SURVIVED" if red is None else red
            sys.stdout.write(
                f"{mutant.file:34} {mutant.function:32} {mutant.mutation:42} {outcome}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen)} mutants, {survivors} survived\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
