"""Schedules of the learning rate that torch has no single class for."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_rlhf.options import check_option


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
