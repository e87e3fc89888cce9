"""How often an update would wait for a device: reads of a tensor's numbers are counted, as CPU tensors are read freely.

What a device computes is told from what the host knows by descent: weights and the rollout are on the device, and so is
all that is made of them, until it is read.
"""

from collections import Counter
from pathlib import Path
from traceback import extract_stack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_rlhf.internals.torch import tensors_in
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import GRPOPolicyModule, PolicyModule, PPOPolicyModule, Updates
from lit_rlhf.rollout import Sampling
from tests.unit.modules.policies import CountVowels, fit

_READS = {
    "item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__iter__", "nonzero",
    "masked_select", "unique",
}  # fmt: skip


class DeviceReads(TorchFunctionMode):
    """Counts reads of what stands on the device that isn't there, by the line of lit_rlhf that reads."""

    def __init__(self, on_device: list[Tensor]) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        for tensor in on_device:
            tensor.there = True  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(getattr(t, "there", False) for t in tensors_in((args, kwargs)))
        name = getattr(func, "__name__", "")
        reads = name in _READS or (name in ("__getitem__", "__setitem__") and _by_mask(args[1]))
        out = func(*args, **kwargs)
        if not there:
            return out
        if reads:
            frames = [f for f in extract_stack() if "lit_rlhf" in f.filename]
            self.places[f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {name}"] += 1
            return out.clone() if name == "cpu" else out  # the host's own
        for tensor in tensors_in(out):
            tensor.there = True  # type: ignore[attr-defined]
        return out


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


class Watched(PolicyModule):
    """Watches the second update."""

    reads: DeviceReads
    microbatches = 0
    update_number = 0

    def update(self, minibatch: Any, batch: Any, step: int) -> float:
        self.update_number += 1
        if self.update_number != 2:
            return super().update(minibatch, batch, step)
        tensors = [*self.parameters(), *self.buffers()]
        fresh = minibatch.map(torch.clone, torch.clone)
        vars(fresh)["lengths"] = minibatch.lengths
        fresh.map(lambda t: tensors.append(t) or t, lambda t: tensors.append(t) or t)
        with DeviceReads(tensors) as self.reads:
            return super().update(fresh, batch, step)

    def loss(self, minibatch: Any) -> Any:
        self.microbatches += self.update_number == 2
        return super().loss(minibatch)


class WatchedPPO(Watched, PPOPolicyModule):
    """PPO, watched."""


class WatchedGRPO(Watched, GRPOPolicyModule):
    """GRPO, watched."""


@pytest.mark.parametrize("kind", [WatchedPPO, WatchedGRPO])
def test_microbatches_never_wait(kind: type[Watched], tiny_model_dir: Path) -> None:
    module = kind(
        ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)),
        CountVowels(),
        sampling=Sampling(max_new_tokens=6),
        updates=Updates(epochs=2, microbatch_tokens=32, target_kl=10.0),
    )
    fit(module, tiny_model_dir)
    assert module.microbatches > 2
    assert sum(module.reads.places.values()) <= 3, module.reads.places
