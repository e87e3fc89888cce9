"""Help that answers at once: read from the sources as text, with nothing imported."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent

TRAINING = """usage: lit-rlhf {command} -c FILE [-c OVERLAY ...] [--key value ...]

{what}. A run is described by YAML files, merged from left to right; options on the command line win over files.

options:
  -c, --config FILE             a configuration; the ones in configs/ have a comment at every key
  --model CLASS                 what is trained, and how          options of a class: --model.help CLASS
  --model.init_args.KEY VALUE   (also --model.KEY VALUE)
  --data CLASS                  where the data come from          options of a class: --data.help CLASS
  --data.init_args.KEY VALUE    (also --data.KEY VALUE)
  --trainer.KEY VALUE           Lightning's Trainer: devices, strategy, precision, max_epochs, ...
  --ckpt_path PATH|last         go on from a checkpoint; options given here hold, those in the checkpoint don't
  --seed_everything SEED        seed of Lightning's global generators (the library's own draws use --model.seed)
  --profile                     fit: time, tokens and utilisation by phase, and the slowest operators; see docs/PROFILING.md
  --print_config                print the whole configuration and stop
  --help-all                    every option of the Trainer ({command} takes a few seconds to list them)
"""


PARTS = """Losses, formats and other parts of these: the help of a class lists what each of its options takes, and

  lit-rlhf {command} --model PreferenceModule --model.loss.help DPO
  lit-rlhf {command} --data PreferenceDataModule --data.format.help ExplicitPrompt

show the options of a part. Classes of your own are named module.Class, found in the current directory and on PYTHONPATH.
"""


def training_help(command: str, what: str) -> str:
    """Help of a training command: usage, and the classes that YAML can name; not those made to be subclassed."""
    parts = [TRAINING.format(command=command, what=what)]
    for title, package, suffix in (
        ("models", "modules", "Module"),
        ("data", "data", "DataModule"),
        ("rewards", "rewards", ""),
        ("rollout engines", "rollout", "Engine"),
        ("callbacks and plugins", "callbacks", ""),
    ):
        rows = [(name, text) for name, text in described_classes(package) if name.endswith(suffix)]
        rows = [(name, text) for name, text in rows if not name.endswith("Error")]
        width = max((len(name) for name, _ in rows), default=0)
        parts.append(
            "\n".join([f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in rows), ""])
        )
    return "\n".join([*parts, PARTS.format(command=command)])


def described_classes(package: str) -> Iterator[tuple[str, str]]:
    """Classes of one of the library's packages that can be built, with the first line of their docstrings.

    In the order of `__all__`. Left out are classes with a method that is left to subclasses, and modules without a
    training step.
    """
    classes = _classes()
    for name in _public_names(PACKAGE / package / "__init__.py"):
        if name in classes and _can_be_built(name, classes):
            yield name, (ast.get_docstring(classes[name]) or "").split("\n")[0]


@cache
def _classes() -> dict[str, ast.ClassDef]:
    nodes = (
        node for file in sorted(PACKAGE.rglob("*.py")) for node in ast.parse(file.read_text()).body
    )
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def _can_be_built(name: str, classes: dict[str, ast.ClassDef]) -> bool:
    methods = _methods(name, classes)
    lacks_step = (
        name.endswith("Module") and "DataModule" not in name and "training_step" not in methods
    )
    return not lacks_step and not any(map(_is_left_open, methods.values()))


def _methods(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, ast.FunctionDef]:
    """A class's methods by name, those of its bases included; what one base leaves open, the next may fill."""
    node = classes[name]
    found = {child.name: child for child in node.body if isinstance(child, ast.FunctionDef)}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            for key, method in _methods(base.id, classes).items():
                if key not in found or _is_left_open(found[key]):
                    found[key] = method
    return found


def _is_left_open(method: ast.FunctionDef) -> bool:
    if any(
        isinstance(mark, ast.Name) and mark.id == "abstractmethod" for mark in method.decorator_list
    ):
        return True
    last = method.body[-1]
    return isinstance(last, ast.Raise) and "NotImplementedError" in ast.unparse(last)


def _public_names(file: Path) -> list[str]:
    for node in ast.parse(file.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []
