"""Classes of Lightning and of one's own in a configuration: each can be named, and what one refuses has its place."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import callbacks, loggers

from lit_rlhf.cli import main

FIT = ["fit", "-c", "reward/lora"]
TAKES = {
    "callbacks": (callbacks, callbacks.Callback),
    "logger": (loggers, loggers.Logger),
}


@pytest.mark.parametrize("option", TAKES)
def test_each_class_of_lightning_can_be_named(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its defaults, which are written: a class that has a default of none of YAML's types couldn't be."""
    found = sorted(set(_free_classes(*TAKES[option])))
    assert len(found) >= 3
    own = {"trainer": {option: [{"class_path": name} for name in found]}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, "-c", str(tmp_path / "own.yaml"), "--print_config"])
    said = capsys.readouterr()
    assert stopped.value.code in (0, None), said.err
    shown = yaml.safe_load(said.out)["trainer"][option]
    read = [each["class_path"].rpartition(".")[2] for each in shown]
    assert read == [name.rpartition(".")[2] for name in found]


def _free_classes(package: object, base: type) -> Iterator[str]:
    """Those that need no option."""
    for name, kind in vars(package).items():
        if not isinstance(kind, type) or not issubclass(kind, base) or inspect.isabstract(kind):
            continue
        parameters = list(inspect.signature(kind).parameters.values())
        if all(
            p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            for p in parameters
        ):
            yield f"{package.__name__}.{name}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "base"),
    [
        ("strategy", "lightning.pytorch.strategies.DDPStrategy"),
        ("accelerator", "lightning.pytorch.accelerators.CPUAccelerator"),
        ("plugins+", "lightning.pytorch.plugins.TorchCheckpointIO"),
        ("logger", "lightning.pytorch.loggers.CSVLogger"),
        ("callbacks+", "lightning.pytorch.Callback"),
    ],
)
def test_a_class_that_can_not_be_made_is_said_with_its_option(
    option: str,
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether a class alone may stand there, or a word too, of which the parser would speak instead."""
    monkeypatch.chdir(tmp_path)
    module, _, name = base.rpartition(".")
    own = f"faulty_{name.lower()}"
    Path(f"{own}.py").write_text(
        f"from {module} import {name}\n\n\nclass Faulty({name}):\n"
        "    def __init__(self, scale: int = 0) -> None:\n        self.inverse = 1 / scale\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, f"--trainer.{option}={{class_path: {own}.Faulty}}"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err.partition("lit-rlhf fit: ")[2]
    assert shown.startswith(f"trainer.{option.removesuffix('+')}: Faulty() can't be made: division")
    assert len(shown) < 400
