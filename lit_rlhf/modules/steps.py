"""What becomes of a gradient: how a rollout is divided into updates, which steps are not taken, what decays."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import TrainingDivergedError
from lit_rlhf.options import check_fields, check_option, is_whole


@dataclass
class Steps:
    """Which optimizer steps are taken, and of what.

    Attributes:
        max_skipped: A step whose gradient isn't finite is skipped and counted (`skipped_steps`); so many in a row, 1 or
            more, stop the run. Overflows while a loss scale of float16 is still shrinking don't count.
        decay_embeddings: Whether weight decay holds for embeddings. Biases and the weights of norms never decay.
    """

    max_skipped: int = 10
    decay_embeddings: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        most = self.max_skipped
        check_option(most >= 1, self, "max_skipped", most, "1 or more")


@dataclass
class Updates(Steps):
    """How an iteration's rollout becomes optimizer steps: `epochs` times `minibatches` of them.

    Attributes:
        epochs: Passes over each rollout; more reuse samples further from the policy that drew them. None: the method's
            own number, 4 in PPO and REBEL, else 1.
        minibatches: Optimizer steps per pass.
        microbatch_tokens: Padded tokens of one forward and backward, and of a forward without gradient: at least 1. A
            single row may have more. Fewer take less memory, more are faster on a GPU; the result is the same but for
            rounding. "auto" is 8192 on a CPU. On a GPU it is 8192 until a step of several microbatches was measured,
            then a power of two from 1024 to 65536 by what memory is free, the same on all processes; kept in
            checkpoints.
        max_grad_norm: The gradient's norm is clipped to this before each step; 0 clips nothing.
        target_kl: Ends an iteration's updates early when the mean approximate KL between the sampling policy and the
            current one exceeds this, in nats per token; None never does.

    Raises:
        ConfigurationError: A number is out of its range, or target_kl has no second step to prevent.
    """

    epochs: int | None = None
    minibatches: int = 1
    microbatch_tokens: int | Literal["auto"] = "auto"
    max_grad_norm: float = 1.0
    target_kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        epochs, target, norm = self.epochs, self.target_kl, self.max_grad_norm
        check_option(epochs is None or epochs >= 1, self, "epochs", epochs, "at least 1")
        check_option(self.minibatches >= 1, self, "minibatches", self.minibatches, "at least 1")
        tokens = self.microbatch_tokens
        valid = tokens == "auto" or is_whole(tokens, 1)
        check_option(
            valid, self, "microbatch_tokens", tokens, 'a whole number, at least 1, or "auto"'
        )
        check_option(norm >= 0, self, "max_grad_norm", norm, "0 (no clipping) or more")
        check_option(target is None or target > 0, self, "target_kl", target, "above 0, or null")
        check_option(
            target is None or epochs is None or self.per_iteration > 1,
            self,
            "target_kl",
            target,
            f"null with epochs={epochs} and minibatches={self.minibatches}: it ends an iteration before its second "
            "optimizer step or a later one, and these take one alone. Leave it out, or raise one of them",
        )

    @property
    def per_iteration(self) -> int:
        """Optimizer steps of an iteration."""
        return (self.epochs or 1) * self.minibatches


class StepGuard:
    """Lets no step through whose gradient isn't finite.

    Attributes:
        skipped: How many were not let through.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.skipped = 0
        self.in_a_row = 0

    def passes(self, norm: Tensor, *, shrinking: bool = False) -> bool:
        """Whether to take a step; all processes say the same.

        Args:
            norm: Of the gradient.
            shrinking: Whether a loss scale above 1 shrinks upon an overflow: then those in a row don't count.

        Raises:
            TrainingDivergedError: So many in a row that the run is lost.
        """
        if not float(sum_over_ranks((~torch.isfinite(norm)).float())):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += not shrinking
        if self.in_a_row >= self.most:
            raise TrainingDivergedError(
                f"The gradient was not finite in {self.in_a_row} optimizer steps in a row (norm "
                f"{float(norm)}), so they "
                "were skipped and the run learns nothing: its weights or its loss have left the "
                "range of numbers. Go on "
                "from an earlier checkpoint with a lower learning rate, or look at the data of the last batch; "
                "max_skipped is the option that says how many are too many."
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Both counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def gradients(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of an optimizer that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradient_sync(trainer: Trainer, *, enabled: bool) -> AbstractContextManager[None]:
    """Whether processes exchange gradients in this backward; the last of a step must."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and not enabled:
        return strategy.block_backward_sync()
    return nullcontext()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients together; under FSDP2 that of all processes."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def guarded_step(
    optimizer: Any, guard: StepGuard, scaler: Any, max_norm: float
) -> tuple[Tensor, bool]:
    """Clip, step and forget the gradient; a step whose gradient isn't finite is not taken.

    Args:
        optimizer: Lightning's, whose step runs the scaler's.
        guard: Counts the steps not taken.
        scaler: The GradScaler of float16, or None.
        max_norm: What the norm is clipped to; 0 clips nothing.

    Returns:
        The norm before clipping, as it is, and whether the step was taken.
    """
    parameters = gradients(optimizer)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    raw = gradient_norm(parameters)  # of scaled gradients under a scaler, whose step scales back
    finite = guard.passes(raw, shrinking=scale > 1)
    if finite and max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm * scale, raw)
    if finite or scaler is not None:  # which skips by itself, and shrinks
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return raw / scale, finite


def undecayed_names(module: nn.Module, *, decay_embeddings: bool) -> set[str]:
    """Names of the parameters that weight decay leaves alone: biases and norms (of one axis), embeddings by choice."""
    embeddings = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters()
    }
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.dim() < 2 or (not decay_embeddings and id(parameter) in embeddings)
    }


def split_by_decay(group: Mapping[str, Any], spared: set[int]) -> Iterator[dict[str, Any]]:
    """A group of an optimizer as two, of which the second has no weight decay; empty ones are left out.

    Args:
        group: With `params` and `name`.
        spared: Ids of the parameters that don't decay.
    """
    decayed = [p for p in group["params"] if id(p) not in spared]
    others = [p for p in group["params"] if id(p) in spared]
    if decayed:
        yield {**group, "params": decayed}
    if others:
        name = f"{group['name']} (no decay)"
        yield {**group, "params": others, "name": name, "weight_decay": 0.0}


class WarmupCosine(LRScheduler):
    r"""Linear warm-up, then half a cosine down: $\eta\,[m + (1 - m)\,\frac12(1 + \cos\pi s)]$ (arXiv:1608.03983).

    In YAML: `lr_scheduler: {class_path: WarmupCosine, init_args: {warmup_steps: 10, total_steps: 200}}`. Steps are
    optimizer steps; a policy takes `updates.epochs` times `updates.minibatches` of them in each iteration.

    Args:
        optimizer: Whose learning rates are scaled.
        total_steps: Steps after which the rate stays at its least, more than `warmup_steps`.
        warmup_steps: Steps until the full rate, 0 or more; the first has 1 / (warmup_steps + 1) of it.
        min_ratio: m, the least rate as a share of the full one, in [0, 1].
        last_epoch: Steps done; -1 begins.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        min_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        check_option(warmup_steps >= 0, self, "warmup_steps", warmup_steps, "0 or more")
        what = f"more than warmup_steps={warmup_steps}"
        check_option(total_steps > warmup_steps, self, "total_steps", total_steps, what)
        check_option(0 <= min_ratio <= 1, self, "min_ratio", min_ratio, "in [0, 1]")
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.min_ratio = min_ratio
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each group at this step."""
        step = self.last_epoch
        if step < self.warmup_steps:
            share = (step + 1) / (self.warmup_steps + 1)
        else:
            done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
            cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
            share = self.min_ratio + (1 - self.min_ratio) * cosine
        return [share * rate for rate in self.base_lrs]
