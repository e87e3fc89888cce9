"""What several processes change: who holds which share of the weights, and what they send one another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lit_rlhf.estimate.dry_run import Phase
from lit_rlhf.models import Backbone
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.opponents import MixtureOpponent

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
                if name.startswith(("weights", "gradients", "optimizer")):
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
        """Bytes that are whole in a backward beside the root: a layer and the one fetched ahead.

        Gradients of the root and of a layer are whole too, before they are divided.
        """
        return 2 * self.layer + (self.layer + self.root) * (self.trained / self.total)

    def in_scoring(self, beside: float = 0.0) -> float:
        """Bytes that are whole in a pass without gradient: the root, a layer, and where the layer was received.

        Args:
            beside: What the pass computes with. Before that there is more: a layer is copied from where it was received
                while the one before is still there, at first the root's.
        """
        copying = max(self.root + 3 * self.layer, 2 * self.root + 2 * self.layer)
        return max(self.root + 2 * self.layer, copying - beside)

    def in_rollout(self, *, packed: bool, copied: float) -> float:
        """Bytes that are whole while it samples: all, or the root and a layer when the others are copied.

        Args:
            packed: Whether they are.
            copied: Bytes of the copies that are counted already.
        """
        if not packed:
            return self.total + self.layer
        return self.root + 2 * self.layer + max(self.total - self.root - copied, 0.0)


def whole_bytes(module: RLHFModule, phase: Phase, *, casts: bool) -> float:
    """Bytes of divided weights that are whole at a time in a phase, or copied because they are divided.

    Args:
        module: Whose step.
        phase: With what is held at its peak.
        casts: Whether products are of another dtype than the weights, so that a packed layer is a copy anyway.
    """
    groups = _groups(module)
    if phase.name == "optimizer":
        return 0.0
    if phase.name == "update":
        trained = [each for each in groups.values() if each.trained]
        whole = [each for key, each in groups.items() if each.trained or key in phase.compared]
        return sum(each.root for each in whole) + max(each.in_backward() for each in trained)
    if phase.name == "rollout":
        copied = math.inf if casts else phase.peak.get("packed weights", 0.0)
        own = groups[id(module.backbone)].in_rollout(packed=phase.packed, copied=copied)
        if isinstance(getattr(module, "opponent", None), MixtureOpponent):
            other = id(module.reference.beside(module.backbone)[0])
            # Its copy isn't counted, and it is gathered when ours is there.
            if other != id(module.backbone):
                own += groups[other].in_rollout(packed=phase.packed, copied=0.0)
                own -= groups[other].layer * (2 if phase.packed else 1)
        return own
    kept = ("weights", "gradients", "optimizer")
    beside = sum(size for name, size in phase.peak.items() if not name.startswith(kept))
    return max(each.in_scoring(beside) for each in groups.values())


def syncing_seconds(
    module: RLHFModule, processes: Processes, steps: int, microbatches: int, scorings: int
) -> float:
    """Seconds that processes send for in an iteration, if nothing is computed meanwhile.

    Args:
        module: Whose step.
        processes: Of the run.
        steps: Of the optimizer.
        microbatches: Passes with a backward.
        scorings: Passes of each model without a backward; where there are any, the policy samples too.
    """
    if processes.count == 1:
        return 0.0
    groups = list(_groups(module).values())
    trained = [each for each in groups if each.trained]
    if not processes.divides:
        return steps * processes.seconds_to_reduce(sum(each.trained for each in trained))
    # Forward and backward gather each layer anew; gradients are divided as they are summed.
    update = sum(2 * each.total + each.trained for each in trained)
    collecting = scorings * sum(each.total for each in groups)
    if scorings:  # prompts pass through the policy, then it is copied
        collecting += 2 * groups[0].total
    return processes.seconds_to_gather(microbatches * update + collecting)


def _groups(module: RLHFModule) -> dict[int, Groups]:
    """Of all models by their ids, the policy's first."""
    others = [part for part in module.modules() if isinstance(part, Backbone)]
    models = {id(each): each for each in (module.backbone, *others)}
    return {key: Groups.of(each) for key, each in models.items()}


def _size(module: nn.Module) -> float:
    return float(sum(p.numel() * p.itemsize for p in module.parameters()))
