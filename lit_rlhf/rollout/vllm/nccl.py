"""Whole weights from GPU to GPU: vLLM's own engine for weights receives what this process broadcasts."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, LitRLHFError
from lit_rlhf.internals.torch import NCCLGroup
from lit_rlhf.models import Backbone, policy_weights
from lit_rlhf.rollout.threads import in_a_thread
from lit_rlhf.rollout.vllm.sampler import Sampler, Version
from lit_rlhf.rollout.vllm.weights import WholeSync


class WeightGroup(Protocol):
    """This process, as the first, and the workers of one vLLM."""

    def broadcast(self, tensor: Tensor) -> None:
        """Send a tensor, or begin to."""


class NCCLSync(WholeSync):
    """Whole weights, adapters merged in, broadcast by NCCL into the memory of vLLM's workers; see `WeightSync`.

    Nothing is written, and this process needs no vLLM: `torch.cuda.nccl` makes a group of it and the workers of each
    server, whose number goes there by HTTP. A server waits for what it is sampling, receives, empties its prefix cache
    and goes on. It must be started with VLLM_SERVER_DEV_MODE=1 and `--weight-transfer-config '{"backend":"nccl"}'`, on
    other GPUs than the policy's: NCCL takes each once. Servers get the weights one after the other. One that dies while
    it receives ends the run: NCCL waits for it.

    Run with a group of gloo in NCCL's place, never on GPUs.
    """

    environment = "VLLM_SERVER_DEV_MODE=1"
    flags = '--weight-transfer-config \'{"backend":"nccl"}\' '
    device = "cuda"
    """Where the policy has to be."""
    number: Callable[[], bytes] = staticmethod(NCCLGroup.number)
    """Makes what a group is joined by."""
    join: Callable[[int, bytes], WeightGroup] = NCCLGroup
    """Joins a group of so many, waiting for the others."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: WeakKeyDictionary[Sampler, WeightGroup] = WeakKeyDictionary()
        self._source: tuple[Backbone, str] | None = None
        self._one_at_a_time = Lock()  # groups of one GPU that work at once may wait for each other

    def refuse(self, backbone: Backbone, role: str, engine: str) -> None:
        """Policies elsewhere than on a GPU."""
        if backbone.device.type != self.device:
            raise ConfigurationError(
                f"NCCLSync sends weights from GPU to GPU, and the {role} is on {backbone.device}: use sync: DiskSync."
            )

    def write(self, backbone: Backbone, role: str, path: object) -> bool:
        """Nothing is: `load` sends what the model holds then, which is this version."""
        self._source = backbone, role
        return False

    def forget(self, sampler: Sampler) -> None:
        """Make a new group: workers that are started anew are in none."""
        self._groups.pop(sampler, None)

    def load(self, sampler: Sampler, version: Version) -> None:
        """Into the place of what it holds."""
        assert self._source is not None
        with self._one_at_a_time:
            weights = policy_weights(*self._source)
            try:
                if sampler not in self._groups:
                    # A thread begins on the first GPU, wherever the policy is.
                    on = torch.cuda.device_of(next(iter(weights.values())))
                    self._groups[sampler] = self._group_with(sampler, on)
                group = self._groups[sampler]
                sampler.receive_weights(version, weights, lambda: _send(group, weights))
            except LitRLHFError:
                self.forget(sampler)
                raise

    def _group_with(self, sampler: Sampler, on: AbstractContextManager[Any]) -> WeightGroup:
        size, number = 1 + sampler.workers(), self.number()

        def join() -> WeightGroup:
            with on:
                return self.join(size, number)

        joined = in_a_thread(join, "joining a vLLM server")
        info = {"rank_offset": 1, "world_size": size, "packed": False}
        sampler.join({**info, "nccl_unique_id_b64": b64encode(number).decode()})
        return joined.result()


@torch.no_grad()
def _send(group: WeightGroup, weights: Mapping[str, Tensor]) -> None:
    for weight in weights.values():
        group.broadcast(weight.contiguous())
