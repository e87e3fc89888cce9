"""Weights on their way to vLLM: written when they have changed, each version under a name of its own."""

import secrets
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.models import Backbone, export_policy
from lit_rlhf.rollout.vllm.sampler import Sampler, Version

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Published(NamedTuple):
    version: Version
    sums: dict[str, int]
    """Of the bits of each tensor, to see changes by: versions of tensors miss writes through `.data`."""


class WeightSync(ABC):
    """How vLLM comes to hold a role's weights as they are now: version after version, by way of a directory.

    `publish` writes a version where a weight has changed since the last, `load` has one vLLM take it, and `retire`
    removes what came before, once all have taken it. The last versions go when this object does. A subclass says which
    weights it brings, how they are written, and how vLLM takes them.

    Args:
        directory: Where versions are written, which vLLM must see under the same path: for one on another machine, a
            file system that both share. Default: the system's directory for temporary files.
    """

    environment: ClassVar[str]
    """What a server needs in its environment, beside what all do."""
    flags: ClassVar[str] = ""
    """The same on its command line."""

    def __init__(self, directory: Path | None = None) -> None:
        self._parent = directory
        self._root: Path | None = None
        # Servers outlive runs; no generator of numbers is drawn from.
        self._run = secrets.token_hex(4)
        self._count = 0
        self._current: dict[str, _Published] = {}
        self._before: list[Version] = []

    # -- what the ways differ in --------------------------------------------------------------------------------------

    @abstractmethod
    def refuse(self, backbone: Backbone, role: str, engine: str) -> None:
        """Raise ConfigurationError for weights that can't be brought this way."""

    @abstractmethod
    def weights(self, backbone: Backbone, role: str) -> dict[str, Tensor]:
        """The weights that vLLM doesn't have by itself; empty if the role is what it was started with."""

    @abstractmethod
    def slot(self, role: str) -> str:
        """Roles of different slots are held side by side; a version replaces the one before in its slot."""

    @abstractmethod
    def write(self, backbone: Backbone, role: str, path: Path) -> bool:
        """Write a role's weights to a directory that isn't there yet; returns whether they are an adapter."""

    @abstractmethod
    def load(self, sampler: Sampler, version: Version) -> None:
        """Have a vLLM take a version."""

    @abstractmethod
    def unload(self, sampler: Sampler, version: Version) -> None:
        """Have a vLLM forget a version that another has replaced."""

    def forget(self, sampler: Sampler) -> None:
        """A vLLM was started anew."""

    # -- what they share ----------------------------------------------------------------------------------------------

    def publish(self, backbone: Backbone, role: str) -> Version | None:
        """The version of a role's weights now, written if they have changed; None: what vLLM started with."""
        weights = self.weights(backbone, role)
        if not weights:
            return None
        slot, sums = self.slot(role), {}
        for name, weight in weights.items():
            flat = weight.detach().reshape(-1)
            # The sum of its bits as whole numbers: exact, and another one after all but any change.
            sums[name] = int(flat.view(_WORDS[flat.element_size()]).sum(dtype=torch.int64))
        now = self._current.get(slot)
        if now is not None and now.sums == sums:
            return now.version
        self._count += 1
        name = f"lit-rlhf-{self._run}-{role}-{self._count}"
        path = self._directory() / name
        version = Version(name, self._count, path, self.write(backbone, role, path))
        self._current[slot] = _Published(version, sums)
        if now is not None:
            self._before.append(now.version)
        return version

    def retire(self, samplers: Sequence[Sampler]) -> None:
        """Remove the versions that others have replaced; called when no request for them is under way."""
        while self._before:
            self._remove(self._before.pop(), samplers)

    def close(self, samplers: Sequence[Sampler]) -> None:
        """Remove all versions."""
        self.retire(samplers)
        while self._current:
            _, last = self._current.popitem()
            self._remove(last.version, samplers)
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def _remove(self, version: Version, samplers: Iterable[Sampler]) -> None:
        for sampler in samplers:
            try:
                self.unload(sampler, version)
            except LitRLHFError:
                continue
        shutil.rmtree(version.path, ignore_errors=True)

    def _directory(self) -> Path:
        if self._root is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="lit-rlhf-vllm-", dir=self._parent)).resolve()
            self._root.chmod(0o755)  # a server may be another user's
            weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        return self._root


class AdapterSync(WeightSync):
    """LoRA adapters, written as peft does and loaded beside the base that vLLM was started with; see `WeightSync`."""

    environment = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    flags = "--enable-lora --max-lora-rank 64 "

    def refuse(self, backbone: Backbone, role: str, engine: str) -> None:
        """Whole models."""
        if not backbone.has_lora:
            raise ConfigurationError(
                f"{engine} brings LoRA adapters to vLLM, never whole models: without model.backbone.lora it would go "
                f"on sampling the weights that vLLM was started with as the {role}. Set model.backbone.lora, or, with "
                "VLLMServerEngine, sync: DiskSync, or use NativeEngine, which samples the weights that are trained."
            )

    def weights(self, backbone: Backbone, role: str) -> dict[str, Tensor]:
        """The role's matrices."""
        return dict(backbone.adapter_weights(role)) if role in backbone.adapters else {}

    def slot(self, role: str) -> str:
        """Each role has one."""
        return role

    def write(self, backbone: Backbone, role: str, path: Path) -> bool:
        """As peft does."""
        path.mkdir()
        backbone.save_adapter(role, path, base=backbone.spec.name, task="CAUSAL_LM")
        return True

    def load(self, sampler: Sampler, version: Version) -> None:
        """Under its name."""
        sampler.load_adapter(version)

    def unload(self, sampler: Sampler, version: Version) -> None:
        """By its name."""
        sampler.unload_adapter(version)


class WholeSync(WeightSync):
    """Whole weights, of one role at a time: a policy and a full copy of it as the reference take turns in a vLLM."""

    def refuse(self, backbone: Backbone, role: str, engine: str) -> None:
        """Nothing."""

    def weights(self, backbone: Backbone, role: str) -> dict[str, Tensor]:
        """All, without the adapters of other roles."""
        return {
            name: weight
            for name, weight in backbone.model.named_parameters()
            if ".lora_" not in name or f".{role}." in name
        }

    def slot(self, role: str) -> str:
        """All roles share one."""
        return ""

    def unload(self, sampler: Sampler, version: Version) -> None:
        """Nothing: the next version has taken its place."""


class DiskSync(WholeSync):
    """Whole weights, adapters merged in: exported to a directory, from which vLLM replaces its own; see `WeightSync`.

    A server waits for what it is sampling, reads the new weights, empties its prefix cache and goes on. It must be
    started with VLLM_SERVER_DEV_MODE=1, which opens the requests for that. Each version is written and read whole:
    seconds for each GB, and room for two of them.
    """

    environment = "VLLM_SERVER_DEV_MODE=1"

    def write(self, backbone: Backbone, role: str, path: Path) -> bool:
        """As `export_policy` does; the log-probs that are compared after loading show whether it reads back."""
        export_policy(backbone, path, merge=True, role=role, read_back=False)
        return False

    def load(self, sampler: Sampler, version: Version) -> None:
        """In place of what it holds."""
        sampler.load_weights(version)


def shapes(path: Path) -> dict[str, list[int]]:
    """Of the weights that a directory holds, by name; empty where it is none, or holds no safetensors."""
    found: dict[str, list[int]] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return found
