"""What several processes change: who holds which share of the weights, and what they send one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lit_rlhf.models import Backbone
from lit_rlhf.modules.base import RLHFModule

Strategy = Literal["ddp", "fsdp2"]


@dataclass(frozen=True)
class Processes:
    """How many, how they divide the model, and how fast they talk.

    Attributes:
        count: One for each device, of all machines.
        strategy: "ddp": each holds everything; "fsdp2": weights, gradients and the optimizer's state are divided.
        bandwidth: Bytes a second that each can send; of several machines that between them.
    """

    count: int = 1
    strategy: Strategy = "ddp"
    bandwidth: float = 1e12

    @property
    def divides(self) -> bool:
        """Whether weights are divided."""
        return self.strategy == "fsdp2" and self.count > 1

    def hold(self, parts: Mapping[str, float], whole: float) -> dict[str, float]:
        """Bytes of one process, from those of a process that is alone.

        Args:
            parts: By what they are for.
            whole: Of these the weights and gradients that are whole at a time.
        """
        held = dict(parts)
        if self.divides:
            for name in held:
                if name.startswith("weights") or name in ("gradients", "optimizer"):
                    held[name] /= self.count
            held["gathered weights"] = whole
        elif self.count > 1 and held.get("gradients"):
            held["DDP's buckets"] = held["gradients"]
        return held

    def seconds_to_reduce(self, size: float) -> float:
        """Of a sum over all processes, each of which then has it: a ring sends everything nearly twice."""
        return 2 * self.seconds_to_gather(size)

    def seconds_to_gather(self, size: float) -> float:
        """Of making whole what is divided, or of dividing a sum."""
        return size * (self.count - 1) / self.count / self.bandwidth


@dataclass(frozen=True)
class Groups:
    """A model's weights as FSDP2 gathers them: each layer, and embeddings and head with what else is in no layer.

    Attributes:
        layer: Bytes of the largest layer.
        root: Bytes of the rest.
        total: Bytes of all.
        trained: Bytes of the weights that are trained.
    """

    layer: float
    root: float
    total: float
    trained: float

    @staticmethod
    def of(backbone: Backbone) -> "Groups":
        """Of a model."""
        lists = [part for part in backbone.decoder.children() if isinstance(part, nn.ModuleList)]
        layers = [_size(layer) for layer in max(lists, key=len, default=nn.ModuleList())]
        total = _size(backbone)
        trained = sum(p.numel() * p.itemsize for p in backbone.parameters() if p.requires_grad)
        return Groups(max(layers, default=0.0), total - sum(layers), total, float(trained))

    def in_backward(self) -> float:
        """Bytes that are whole in a backward: the root, a layer and the one fetched ahead.

        Gradients of the root and of a layer are whole too, before they are divided.
        """
        gradients = (self.layer + self.root) * (self.trained / self.total)
        return self.root + 2 * self.layer + gradients


def whole_bytes(module: RLHFModule, phase: str) -> float:
    """Bytes of divided weights that are whole at a time: for work without gradients all of the largest model."""
    groups = _groups(module)
    if phase == "optimizer":
        return 0.0
    if phase == "update":
        return sum(each.in_backward() for each in groups if each.trained)
    return max(each.total for each in groups)


def syncing_seconds(
    module: RLHFModule, processes: Processes, steps: int, microbatches: int, *, collects: bool
) -> float:
    """Seconds that processes send for in an iteration, if nothing is computed meanwhile.

    Args:
        module: Whose step.
        processes: Of the run.
        steps: Of the optimizer.
        microbatches: Passes with a backward.
        collects: Whether each model has a pass without gradients too, and the policy another, in which it samples.
    """
    if processes.count == 1:
        return 0.0
    groups = _groups(module)
    trained = [each for each in groups if each.trained]
    if not processes.divides:
        return steps * processes.seconds_to_reduce(sum(each.trained for each in trained))
    # Forward and backward gather each layer anew; gradients are divided as they are summed.
    update = sum(2 * each.total + each.trained for each in trained)
    collecting = groups[0].total + sum(each.total for each in groups) if collects else 0.0
    return processes.seconds_to_gather(microbatches * update + collecting)


def _groups(module: RLHFModule) -> list[Groups]:
    """Of all models, the policy's first."""
    others = [part for part in module.modules() if isinstance(part, Backbone)]
    models = {id(each): each for each in (module.backbone, *others)}
    return [Groups.of(each) for each in models.values()]


def _size(module: nn.Module) -> float:
    return float(sum(p.numel() * p.itemsize for p in module.parameters()))
