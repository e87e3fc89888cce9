"""Adapters on their way to vLLM: written when they have changed, each under a name of its own."""

import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models import Backbone


class _Published(NamedTuple):
    name: str
    number: int
    path: Path
    weights: dict[str, Tensor]
    """A copy of what was written, to see changes by: versions of tensors miss writes through `.data`."""


class PublishedAdapters:
    """What vLLM has been given, one adapter for each role.

    vLLM caches adapters and the keys and values of prompts by name and number, so neither is ever used twice. An
    adapter is published again when a weight of it has changed, and the one before it is then unloaded and its files
    removed; the last ones go when this object does.

    Args:
        directory: Parent of the directories to write; default: the system's directory for temporary files.
        load: Called with name, number and directory of a new adapter.
        unload: Called with name and number of one that is no longer needed.
    """

    def __init__(
        self,
        directory: Path | None,
        load: Callable[[str, int, Path], None],
        unload: Callable[[str, int], None],
    ) -> None:
        self._parent = directory
        self._load = load
        self._unload = unload
        self._root: Path | None = None
        self._run = secrets.token_hex(
            4
        )  # servers outlive runs; no generator of numbers is drawn from
        self._count = 0
        self._by_role: dict[str, _Published] = {}

    def current(self, backbone: Backbone, role: str) -> tuple[str, int]:
        """Name and number of a role's adapter as it is now, published if it has changed."""
        weights = backbone.adapter_weights(role)
        before = self._by_role.get(role)
        if before is not None and _equal(before.weights, weights):
            return before.name, before.number
        self._count += 1
        name = f"lit-rlhf-{self._run}-{role}-{self._count}"
        path = self._directory() / name
        path.mkdir()
        backbone.save_adapter(role, path, base=backbone.spec.name, task="CAUSAL_LM")
        self._load(name, self._count, path)
        kept = {key: value.detach().clone() for key, value in weights.items()}
        self._by_role[role] = _Published(name, self._count, path, kept)
        if before is not None:
            self._unload(before.name, before.number)
            shutil.rmtree(before.path)
        return name, self._count

    def close(self) -> None:
        """Unload and remove what is left."""
        while self._by_role:
            _, last = self._by_role.popitem()
            self._unload(last.name, last.number)
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def _directory(self) -> Path:
        if self._root is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="lit-rlhf-vllm-", dir=self._parent)).resolve()
            weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        return self._root


def _equal(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    return before.keys() == now.keys() and all(
        torch.equal(before[key], value) for key, value in now.items()
    )
