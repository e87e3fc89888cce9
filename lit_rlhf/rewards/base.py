"""What a reward is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lit_rlhf.models import Backbone, RewardSource
from lit_rlhf.types import Completions


class Reward(nn.Module, ABC):
    """Scores completions."""

    def attach(self, backbone: Backbone) -> None:  # noqa: B027
        """Called once by the policy module while the model is built; parts on the policy's base belong here."""

    def source(self) -> RewardSource | None:
        """Where a trained reward model lives, for a critic to start from."""
        return None

    @abstractmethod
    def score(self, completions: Completions) -> Tensor:
        """(N,) float32."""
