"""A module's step on tensors without numbers, phase by phase: what is held at the peak of each, and its FLOPs."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.estimate.building import Weight
from lit_rlhf.estimate.device import acting
from lit_rlhf.estimate.memory import MemoryCount
from lit_rlhf.estimate.workload import Workload
from lit_rlhf.models import Backbone
from lit_rlhf.models.flops import call_flops
from lit_rlhf.models.loading import embeddings
from lit_rlhf.modules import PolicyModule, PreferenceModule, RewardModelModule, SupervisedModule
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.minibatches import microbatch_indices
from lit_rlhf.types import EvaluatedRollout, ScoredRollout, asked


@dataclass(frozen=True)
class Phase:
    """A phase of a step.

    Attributes:
        name: As `PhaseTimer` logs it; `optimizer` is the step of the optimizer.
        peak: Bytes at the moment at which the most was held, by what they are for.
        flops: Of all its passes; of the update those of one microbatch.
        kernels: Launched in the same; of a rollout those of a pass.
        passes: Times that the weights are read in a rollout.
        cache: Bytes of keys and values when they are most.
        recorded: Whether a pass of a rollout is a CUDA graph.
        packed: Whether it goes by a copy of the layers.
        compared: Ids of the frozen models whose logits a loss compares with the policy's.
    """

    name: str
    peak: Mapping[str, int]
    flops: float = 0.0
    kernels: int = 0
    passes: int = 1
    cache: int = 0
    recorded: bool = False
    packed: bool = False
    compared: frozenset[int] = frozenset()


class DryRun:
    """The step of a module, the optimizer's state held throughout as it is from the second step on.

    Args:
        module: Built on the meta device.
        workload: What a step is given.
        weights: Its weights and buffers.
        kind: The kind of device, "cpu" or "cuda".
        autocast: Of the Trainer's precision, if any.
        accumulate: Microbatches of a step of modules whose gradients Lightning sums.
        rows: Of a microbatch; None as the module has it.

    Attributes:
        count: Of what is held.
    """

    def __init__(
        self,
        module: RLHFModule,
        workload: Workload,
        weights: Iterable[Weight],
        *,
        kind: str,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        rows: int | None = None,
    ) -> None:
        self.module = module
        self.workload = workload
        self.kind = kind
        self.autocast = autocast
        self.accumulate = accumulate
        self.count = MemoryCount()
        for weight in weights:
            self.count.hold(weight.part, weight.tensor, weight.size)
        self.vocabulary = int(embeddings(module.backbone.model).shape[0])
        self.flops = 0.0
        self._compared: set[int] = set()
        self._rows = rows
        self._rollout: EvaluatedRollout | None = None
        for part in module.modules():
            if isinstance(part, Backbone):
                part.register_forward_hook(self._see_forward, with_kwargs=True)
        for parameter in self._trained:
            parameter.register_post_accumulate_grad_hook(
                lambda weight: self.count.assign("gradients", asked(weight.grad))
            )
        with self.simulated():
            self.optimizer = self._make_optimizer()

    # -- phases -------------------------------------------------------------------------------------------------------

    def update(self, rows: int | None = None) -> Phase:
        """Forward and backward of a microbatch of some rows, of the configured size by default.

        Gradients of former microbatches are held where there are any.
        """
        given = self._given(rows or self.rows)
        with self.simulated():
            self.module.zero_grad(set_to_none=True)
            if self.parts > 1:
                self._hold_gradients()
            self.count.forget_peak()
            self._compared.clear()
            self.flops, before = 0.0, self.count.kernels
            with self.count.part("activations", logits=self.vocabulary):
                loss = _loss(self.module, given)
                # By an edge, for `backward` of a tensor switches function modes off meanwhile.
                torch.autograd.backward(get_gradient_edge(loss), torch.ones_like(loss))
                del loss
            kernels = self.count.kernels - before
            compared = frozenset(self._compared)
            return Phase("update", self.count.peak(), self.flops, kernels, compared=compared)

    def optimize(self) -> Phase:
        """A step of the optimizer."""
        with self.simulated():
            self._hold_gradients()
            self.count.forget_peak()
            with self.count.part("optimizer's temporaries"):
                self.optimizer.step()
            phase = Phase("optimizer", self.count.peak())
            self.optimizer.zero_grad(set_to_none=True)
            return phase

    @torch.no_grad()
    def evaluate(self) -> None:
        """Evaluate a policy's rollout."""
        assert isinstance(self.module, PolicyModule)
        self._rollout = self.module.evaluate(self.scored).map(_real, _real)

    @property
    def scored(self) -> ScoredRollout:
        """What a policy has sampled."""
        assert isinstance(self.module, PolicyModule)
        sampled = self.module.sampled_values is not None
        return self.workload.rollout(self.workload.prompts, values=sampled)

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """Count what is made within, on a device of the kind."""
        with self.count, acting(self.kind, self.autocast):
            yield

    # -- how often ----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of the largest microbatch."""
        return self._rows or -(-self._minibatch // self.parts)

    @property
    def parts(self) -> int:
        """Microbatches of an optimizer step."""
        if self._rows is not None:
            return -(-self._minibatch * self.accumulate // self._rows)
        if not isinstance(self.module, PolicyModule):
            return self.accumulate
        return self._parts_of(self.module, self._minibatch)

    @property
    def scorings(self) -> int:
        """Passes over a whole rollout without gradient."""
        if not isinstance(self.module, PolicyModule):
            return 0
        return self._parts_of(self.module, self.workload.prompts)

    @property
    def steps(self) -> int:
        """Optimizer steps of an iteration; one of modules without iterations."""
        return self.module.updates.per_iteration if isinstance(self.module, PolicyModule) else 1

    @property
    def repeats(self) -> float:
        """Microbatches of the largest size that an iteration's updates are worth."""
        return self.steps * self._minibatch * self.accumulate / self.rows

    @property
    def _minibatch(self) -> int:
        """Rows of an optimizer step, or of a batch where Lightning sums gradients."""
        if not isinstance(self.module, PolicyModule):
            return self.workload.prompts
        return max(self.workload.prompts // self.module.updates.minibatches, 1)

    # -- inner parts --------------------------------------------------------------------------------------------------

    def _parts_of(self, module: PolicyModule, rows: int) -> int:
        lengths, budget = torch.full((rows,), self.workload.row), module.microbatch_size.tokens
        return len(microbatch_indices(lengths, torch.arange(rows), budget))

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    def _given(self, rows: int) -> Any:
        """What the loss of a microbatch is computed from."""
        if isinstance(self.module, PolicyModule):
            assert self._rollout is not None
            rollout = self.module.estimated(self._rollout)
            return rollout.select(torch.arange(rows) % rollout.num_prompts)
        batch = self.workload.batch(rows)
        if getattr(self.module, "reference_source", None) != "precomputed":
            del batch["ref_logprobs"]
        return batch

    def _make_optimizer(self) -> Optimizer:
        """The module's own, with the state of a first step."""
        made: Any = self.module.configure_optimizers()
        optimizer: Optimizer = made["optimizer"] if isinstance(made, dict) else made
        for group in optimizer.param_groups:
            if self.kind == "cuda" and self.module.optimizer_factory is not None:
                group["foreach"] = group.get("foreach") is not False
        self._hold_gradients()
        with self.count.part("optimizer"):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return optimizer

    def _hold_gradients(self) -> None:
        with self.count.part("gradients"):
            for weight in self._trained:
                weight.grad = torch.empty_like(weight)

    def _see_forward(
        self, backbone: Backbone, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self.flops += float(call_flops(backbone, args, kwargs, output))
        if kwargs.get("hidden"):
            self._compared.add(id(backbone))


def _loss(module: RLHFModule, given: Any) -> Tensor:
    """A loss of a microbatch, up to its denominator."""
    if isinstance(module, PolicyModule):
        return module.reduction.numerator(module.loss(given).loss, given.response_mask)
    if isinstance(module, SupervisedModule):
        out = module(given)
        return module.reduction.numerator(module.loss(out, given).loss, out.mask)
    if isinstance(module, RewardModelModule):
        return module.loss(module.scores(given)[0], given).loss.sum()
    if isinstance(module, PreferenceModule):
        return module.loss_output(given).loss.sum()
    raise ConfigurationError(
        f"{type(module).__name__} is none of the modules whose memory is estimated: SupervisedModule, "
        "RewardModelModule, PreferenceModule, PolicyModule and what is made of them."
    )


def _real(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else x
