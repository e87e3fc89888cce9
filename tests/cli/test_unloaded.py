"""What is read from the files of classes is what the classes are, once they are loaded."""

import inspect
from importlib import import_module

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import LightningDataModule, LightningModule

from lit_rlhf.cli.refusals import PACKAGES
from lit_rlhf.cli.unloaded import described_classes, find_class


def is_open(kind: type) -> bool:
    """Whether a method raises NotImplementedError, is abstract, or is Lightning's empty training step."""
    methods = [getattr(kind, name) for name in dir(kind) if not name.startswith("__")]
    return inspect.isabstract(kind) or any(
        (
            method.__module__.startswith("lit_rlhf.")
            and "NotImplementedError" in method.__code__.co_names
        )
        or method.__qualname__ == "LightningModule.training_step"
        for method in methods
        if inspect.isfunction(method)
    )


def loaded_classes(package: str) -> dict[str, type]:
    home = vars(import_module(f"lit_rlhf.{package}"))
    found = {name: each for name, each in home.items() if isinstance(each, type)}
    return {name: each for name, each in found.items() if not issubclass(each, Exception)}


@pytest.mark.parametrize("package", PACKAGES)
def test_classes_and_what_they_are_for(package: str) -> None:
    found = {
        name: (inspect.getdoc(kind) or "").split("\n")[0]
        for name, kind in loaded_classes(package).items()
        if not is_open(kind)
    }
    assert len(found) > 1
    assert dict(described_classes(package)) == found


@pytest.mark.parametrize("package", ["modules", "data"])
def test_no_option_of_a_class_is_refused(package: str) -> None:
    built = [
        (name, kind)
        for name, kind in loaded_classes(package).items()
        if issubclass(kind, LightningModule | LightningDataModule)
    ]
    assert len(built) > 5
    for name, kind in built:
        found = find_class(f"lit_rlhf.{package}", name)
        assert found is not None
        assert {each.name for each in get_signature_parameters(kind)} <= set(found.options), name
