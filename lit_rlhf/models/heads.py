"""Scalar heads on hidden states."""

import torch
from torch import Tensor, nn

from lit_rlhf.seeding import generator


class ScalarHead(nn.Module):
    r"""A linear map from a hidden state to one number, $w^\top h$, in float32 whatever the decoder's dtype.

    It has no bias: preferences don't determine one, and `AutoModelForSequenceClassification` has none.

    Args:
        hidden_size: Width of the decoder.
        init_std: Standard deviation of the initial weights; 0 starts at the constant 0.
        seed: Of the initial weights.
        name: Heads of different names draw different weights from one seed.
        device: Where the weights live.
    """

    weight: nn.Parameter

    def __init__(
        self,
        hidden_size: int,
        init_std: float = 0.0,
        seed: int = 0,
        name: str = "",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        draw = torch.empty(hidden_size, dtype=torch.float32, device="cpu")
        draw.normal_(generator=generator(seed, "head", name))
        self.weight = nn.Parameter((draw * init_std).to(device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., h) in any float dtype to (...) in float32, under autocast too."""
        # The meta device, which checks shapes and devices, knows no autocast.
        kind = "cpu" if hidden.is_meta else hidden.device.type
        with torch.autocast(kind, enabled=False):
            return hidden.float() @ self.weight.float()

    @staticmethod
    def reward_std(hidden_size: int) -> float:
        r"""Initial $\sigma = 1/\sqrt{h + 1}$ of a reward head (arXiv:1909.08593): first scores are of order 1."""
        return float((hidden_size + 1) ** -0.5)
