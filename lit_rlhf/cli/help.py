"""Help that answers at once: read from the sources as text, with nothing imported."""

import ast
from collections.abc import Iterator
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
  --print_config                print the whole configuration and stop
  --help-all                    every option of the Trainer ({command} takes a few seconds to list them)
"""


def training_help(command: str, what: str) -> str:
    """Help of a training command: usage, and the classes that YAML can name."""
    parts = [TRAINING.format(command=command, what=what)]
    for title, package, suffix in (
        ("models", "modules", "Module"),
        ("data", "data", "DataModule"),
        ("rewards", "rewards", ""),
        ("rollout engines", "rollout", "Engine"),
        ("callbacks", "callbacks", ""),
    ):
        rows = [(name, text) for name, text in described_classes(package) if name.endswith(suffix)]
        width = max((len(name) for name, _ in rows), default=0)
        parts.append("\n".join([f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in rows), ""]))
    return "\n".join(parts)


def described_classes(package: str) -> Iterator[tuple[str, str]]:
    """Public classes of one of the library's packages with the first line of their docstrings, in `__all__`'s order."""
    folder = PACKAGE / package
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = (ast.get_docstring(node) or "").split("\n")[0]
    for name in _public_names(folder / "__init__.py"):
        if found.get(name):
            yield name, found[name]


def _public_names(file: Path) -> list[str]:
    for node in ast.parse(file.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []
