"""A device's memory as a test says it is: that is all of a GPU that choosing the size of microbatches looks at."""

from typing import Any

import torch
from torch import nn

from lit_rlhf.modules import PolicyModule
from lit_rlhf.modules.minibatches import Memory

EARLIER = 10**9
"""Peak of what came before the update."""
EACH = 7
"""Bytes that a padded token of a pass with gradient takes."""


class SaidMemory(Memory):
    """Of a device where the passes of one module take `EACH` for each padded token.

    Args:
        free: Bytes.
        card: Its name.
    """

    def __init__(self, free: float, card: str = "a card") -> None:
        self.left = int(free)
        self.name = card
        self.passes: list[int] = []
        """Padded tokens of each pass with gradient."""
        self.evaluated: list[int] = []
        """Of each without, between rollout and update."""
        self.forgotten_at: list[int] = []
        """How many of them there had been when the peak was forgotten."""

    def watch(self, module: PolicyModule) -> None:
        """Count the passes of a module that isn't built yet, and be its device's memory."""
        build = module.configure_roles

        def configure_roles() -> None:
            build()
            module.backbone.register_forward_pre_hook(count, with_kwargs=True)

        def count(backbone: nn.Module, args: Any, kwargs: Any) -> None:
            tokens = args[0]["input_ids"].numel()
            if torch.is_grad_enabled():
                self.passes.append(tokens)
            elif module.phases.current == "reference":
                self.evaluated.append(tokens)

        module.configure_roles = configure_roles  # type: ignore[method-assign]
        module.microbatch_size.memory_of = self.of

    def of(self, device: torch.device) -> Memory:
        """It, whatever the device."""
        return self

    def allocated(self) -> int:
        """Constant."""
        return 1000

    def peak(self) -> int:
        """Of the last pass, once what came before is forgotten."""
        return 1000 + EACH * self.passes[-1] if self.forgotten_at else EARLIER

    def forget_peak(self) -> None:
        """See `Memory`."""
        self.forgotten_at.append(len(self.passes))

    def card(self) -> str:
        """As said."""
        return self.name

    def free(self) -> int:
        """As said."""
        return self.left
