"""A module's step on tensors without numbers, phase by phase: what is held at the peak of each, and its FLOPs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.estimate.device import acting
from lit_rlhf.estimate.memory import MemoryCount, Peak
from lit_rlhf.estimate.workload import Workload
from lit_rlhf.models import Backbone, RewardSource, evaluating
from lit_rlhf.models.flops import call_flops, generation_flops
from lit_rlhf.models.loading import embeddings
from lit_rlhf.modules import PolicyModule, PreferenceModule, RewardModelModule, SupervisedModule
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.minibatches import microbatch_indices, row_lengths
from lit_rlhf.rewards import Reward
from lit_rlhf.rewards.retokenize import TokenRows
from lit_rlhf.rewards.scoring import score_rows
from lit_rlhf.rollout import HFEngine, NativeEngine
from lit_rlhf.rollout.native import Decoder
from lit_rlhf.rollout.sampling import draw_tokens
from lit_rlhf.rollout.steps import ModelStep, choose_step
from lit_rlhf.types import ScoredRollout


@dataclass(frozen=True)
class Phase:
    """A phase of a step, weights left out.

    Attributes:
        name: As `PhaseTimer` logs it; `optimizer` is the step of the optimizer.
        peak: The most that was held.
        flops: Of all its passes in one iteration, or of one microbatch of modules without iterations.
        passes: Times that the weights are read.
        cache: Bytes of keys and values when they are most.
        operators: Launched in a pass.
    """

    name: str
    peak: Peak
    flops: float = 0.0
    passes: int = 1
    cache: int = 0
    operators: int = 0


class DryRun:
    """The phases of a module's step, each asked for once.

    Args:
        module: Built on the meta device.
        workload: What a step is given.
        kind: The kind of device, "cpu" or "cuda".
        autocast: Of the Trainer's precision, if any.
        accumulate: Microbatches of a step of modules whose gradients Lightning sums.
        rows: Of a microbatch; None as the module has it.
    """

    def __init__(
        self,
        module: RLHFModule,
        workload: Workload,
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
        self._rows = rows
        self.count = MemoryCount()
        self.vocabulary = int(embeddings(module.backbone.model).shape[0])
        self.flops = 0.0
        self._rollout: Any = None
        for part in module.modules():
            if isinstance(part, Backbone):
                part.register_forward_hook(self._count_flops, with_kwargs=True)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(self._keep_gradient)
            for weight in module.parameters()
            if weight.requires_grad
        ]

    def phases(self) -> list[Phase]:
        """All of them, the optimizer's state held throughout as it is from the second step on."""
        with self.simulated():
            optimizer = self._first_step()
        phases = []
        if isinstance(self.module, PolicyModule):
            phases += _Collecting(self, self.module).phases()
        phases.append(self.update())
        with self.simulated():
            self.count.forget_peak()
            with self.count.part("temporaries"):
                optimizer.step()
            phases.append(Phase("optimizer", self.count.peak()))
            optimizer.zero_grad(set_to_none=True)
        return phases

    def update(self, rows: int | None = None) -> Phase:
        """Forward and backward of a microbatch of some rows, of the configured size by default.

        Gradients of former microbatches are held where there are any.
        """
        rows, parts = (self.rows, self.parts) if rows is None else (rows, self.parts)
        with self.simulated():
            self.module.zero_grad(set_to_none=True)
            if parts > 1:
                self._hold_gradients()
            loss = self._loss(rows)
            self.count.forget_peak()
            self.flops = 0.0
            with self.count.part("activations", logits=self.vocabulary):
                found = loss()
                # By an edge, for `backward` of a tensor switches function modes off meanwhile.
                torch.autograd.backward(get_gradient_edge(found), torch.ones_like(found))
                del found
            return Phase("update", self.count.peak(), self.flops)

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
        lengths = torch.full((self._minibatch,), self.workload.row)
        budget = self.module.updates.microbatch_tokens
        return len(microbatch_indices(lengths, torch.arange(self._minibatch), budget))

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

    def _loss(self, rows: int) -> Callable[[], Tensor]:
        """What computes the loss of a microbatch; what it is made of has been made."""
        module, workload = self.module, self.workload
        if isinstance(module, PolicyModule):
            rollout = self.estimated(module, rows)
            return lambda: module.reduction.numerator(
                module.loss(rollout).loss, rollout.response_mask
            )
        batch = cast("Any", workload.batch(rows))
        if isinstance(module, SupervisedModule):
            return lambda: _token_loss(module, batch)
        if isinstance(module, RewardModelModule):
            return lambda: module.loss(module.scores(batch)[0], batch).loss.sum()
        if isinstance(module, PreferenceModule):
            return lambda: module.loss_output(batch).loss.sum()
        raise ConfigurationError(
            f"{type(module).__name__} is none of the modules whose memory is estimated: SupervisedModule, "
            "RewardModelModule, PreferenceModule, PolicyModule and what is made of them."
        )

    def estimated(self, module: PolicyModule, rows: int) -> Any:
        """Rows of a rollout as the losses take it, with real numbers."""
        if self._rollout is None:
            with torch.no_grad():
                evaluated = module.evaluate(self.scored)
            rollout = module.estimate(evaluated.map(_real, _real))
            self._rollout = rollout.map(_real, _real)
        return self._rollout.select(torch.arange(rows) % self._rollout.num_prompts)

    @property
    def scored(self) -> ScoredRollout:
        """What a policy has sampled."""
        assert isinstance(self.module, PolicyModule)
        sampled = self.module.sampled_values is not None
        return self.workload.rollout(self.workload.prompts, values=sampled)

    def _first_step(self) -> Optimizer:
        """Make the optimizer, and its state by a step."""
        made: Any = self.module.configure_optimizers()
        optimizer: Optimizer = made["optimizer"] if isinstance(made, dict) else made
        for group in optimizer.param_groups:
            if self.kind == "cuda" and self.module.optimizer_factory is not None:
                group["foreach"] = group.get("foreach", True) is not False
        self._hold_gradients()
        with self.count.part("optimizer"):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return optimizer

    def _hold_gradients(self) -> None:
        with self.count.part("gradients"):
            for weight in self.module.parameters():
                if weight.requires_grad:
                    weight.grad = torch.empty_like(weight)

    def _keep_gradient(self, weight: nn.Parameter) -> None:
        if weight.grad is not None:
            self.count.assign("gradients", weight.grad)

    def _count_flops(
        self, backbone: Backbone, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self.flops += float(call_flops(backbone, args, kwargs, output))

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """Count what is made within, on a device of the kind."""
        with self.count, acting(self.kind, self.autocast):
            yield


class _Collecting:
    """What policies do without gradients."""

    def __init__(self, run: DryRun, module: PolicyModule) -> None:
        self.run = run
        self.module = module
        self.workload = run.workload

    def phases(self) -> list[Phase]:
        """Rollout, reward and reference."""
        found = []
        if isinstance(self.module.engine, NativeEngine | HFEngine):
            found.append(self.rollout())
        if any(True for _ in _scoring(self.module.reward)):
            found.append(self._measured("reward", self._score))
        found.append(self._measured("reference", self._evaluate))
        return found

    def rollout(self) -> Phase:
        """The last steps of a decode in which no row has ended, its caches full."""
        run, module, load = self.run, self.module, self.workload
        shares = isinstance(module.engine, NativeEngine)
        most = module.engine.max_batch_size if isinstance(module.engine, NativeEngine) else None
        samples = load.branches if shares else 1
        prompts = load.prompts if shares else load.prompts * load.branches
        if most is not None and prompts * samples > most:
            prompts, samples = max(most // samples, 1), min(samples, most)
        mask = torch.ones(prompts, load.prompt_tokens, dtype=torch.bool)
        backbone, count = module.backbone, run.count
        quantized = backbone.spec.quantization != "none"
        with run.simulated(), torch.no_grad(), evaluating(backbone), backbone.use_role("policy"):
            count.forget_peak()
            with count.part("packed weights"):
                step = (
                    ModelStep(backbone)
                    if quantized or not shares
                    else choose_step(backbone, load.completion_tokens)
                )
            with count.part("temporaries", logits=run.vocabulary):
                lengths = mask.sum(-1)
                decoder = Decoder(backbone, step, mask.long(), lengths, samples)
                self._fill(decoder)
                for _ in range(2):
                    before = count.operators
                    tokens, _ = draw_tokens(
                        decoder.logits,
                        torch.zeros(prompts * samples, dtype=torch.float64),
                        replace(module.sampling, top_p=1.0),
                    )
                    decoder.advance(torch.zeros(len(tokens), dtype=torch.int64))
            peak, launched = count.peak(), count.operators - before
            cache = count.now().parts["key-value cache"]
        ones = torch.ones(load.prompts * load.branches, load.completion_tokens)
        asked = torch.ones(load.prompts, load.prompt_tokens)
        flops = float(generation_flops(backbone, "policy", asked, ones))
        rounds = -(-load.prompts * load.branches // (prompts * samples))
        return Phase(
            "rollout",
            peak,
            flops,
            passes=rounds * load.completion_tokens,
            cache=cache,
            operators=launched,
        )

    def _fill(self, decoder: Decoder) -> None:
        """As if all but the last tokens had been generated."""
        count, steps = self.run.count, self.workload.completion_tokens
        for layer in decoder.cache.own_layers:
            filled = layer.filled
            while layer.own.keys.shape[2] < filled + steps:
                layer.own = layer.own.roomier()
            layer.filled = filled + max(steps - 2, 0)
            count.assign("key-value cache", *layer.own, *(layer.shared or ()))

    def _measured(self, name: str, work: Callable[[], object]) -> Phase:
        run = self.run
        with run.simulated(), torch.no_grad():
            run.count.forget_peak()
            run.flops = 0.0
            with run.count.part("temporaries", logits=run.vocabulary):
                work()
            return Phase(name, run.count.peak(), run.flops)

    def _score(self) -> None:
        rollout = self.run.scored
        prompts, made = rollout.prompts, rollout.completions
        rows = TokenRows(prompts.ids, prompts.mask, made.tokens, made.mask)
        for reward, source in _scoring(self.module.reward):
            budget = getattr(reward, "batch_tokens", 8192)
            score_rows(source.backbone, rows, str(source.role), budget, "")

    def _evaluate(self) -> None:
        with evaluating(self.module.backbone):
            self.run.estimated(self.module, 1)


def _scoring(reward: Reward) -> Iterator[tuple[Reward, RewardSource]]:
    """The reward models in a reward."""
    members = reward.members()
    for member in members:
        yield from _scoring(member)
    source = None if members else reward.source()
    if source is not None:
        yield reward, source


def _token_loss(module: SupervisedModule, batch: Any) -> Tensor:
    out = module(batch)
    return module.reduction.numerator(module.loss(out, batch).loss, out.mask)


def _real(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else x
