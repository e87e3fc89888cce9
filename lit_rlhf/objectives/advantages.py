"""Advantages without a critic: the classes to inject into group methods."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from lit_rlhf.errors import CheckpointError
from lit_rlhf.functional.advantages import (
    discounted_returns,
    group_centered,
    group_normalized,
    leave_one_out,
    spread_over_tokens,
)
from lit_rlhf.functional.masking import masked_sum, whiten
from lit_rlhf.options import check_option


class Advantage(ABC):
    """Rewards of tokens to advantages of tokens, over the rollouts of *all* ranks.

    Rewards already hold what the algorithm puts there (score at the end, KL terms). A sequence's return is their sum.
    """

    min_samples: int = 1
    """How many samples of each prompt it takes; fewer are refused before anything is sampled."""

    @abstractmethod
    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """Advantages (N, T), 0 where masked.

        Args:
            rewards: (N, T), 0 where masked; samples of a prompt are neighbours.
            mask: (N, T) bool.
            num_samples: Samples of each prompt.
        """

    def state_dict(self) -> dict[str, float]:
        """What a run needs to go on as if it had not stopped; most advantages have no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: The state is that of another kind of advantage.
        """
        if state:
            raise CheckpointError(
                f"The checkpoint holds a state of the advantage ({sorted(state)}), but {type(self).__name__} has none: "
                "resume with the advantage of that run, or start a new run from its weights."
            )


class LeaveOneOut(Advantage):
    """Return minus the mean return of the prompt's *other* samples: unbiased (RLOO, arXiv:2402.14740)."""

    min_samples = 2

    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """See `functional.leave_one_out`."""
        return spread_over_tokens(
            leave_one_out(masked_sum(rewards, mask, dim=-1), num_samples), mask
        )


class GroupCentered(Advantage):
    """Return minus the mean return of the prompt's samples (Dr. GRPO, arXiv:2503.20783): (G - 1)/G of the gradient."""

    min_samples = 2

    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """See `functional.group_centered`."""
        return spread_over_tokens(
            group_centered(masked_sum(rewards, mask, dim=-1), num_samples), mask
        )


class GroupNormalized(Advantage):
    """Return minus the mean over the standard deviation of the prompt's samples (GRPO, arXiv:2402.03300).

    Args:
        eps: Above 0, added to the standard deviation: groups whose returns differ by less are held back.

    Raises:
        ConfigurationError: eps is not above 0.
    """

    min_samples = 2

    def __init__(self, eps: float = 1e-4) -> None:
        check_option(eps > 0, self, "eps", eps, "above 0: equal returns would give nan")
        self.eps = float(eps)

    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """See `functional.group_normalized`."""
        return spread_over_tokens(
            group_normalized(masked_sum(rewards, mask, dim=-1), num_samples, self.eps), mask
        )


class RewardToGo(Advantage):
    r"""$\sum_{s\ge t}\gamma^{s-t}R_s$, without a baseline: REINFORCE; with `Whitened`, REINFORCE++ (arXiv:2501.03262).

    Args:
        gamma: Discount per token in [0, 1]; below 1 changes the objective.

    Raises:
        ConfigurationError: gamma is out of range.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        check_option(0 <= gamma <= 1, self, "gamma", gamma, "in [0, 1]")
        self.gamma = float(gamma)

    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """See `functional.discounted_returns`."""
        del num_samples
        return discounted_returns(rewards, mask, self.gamma)


class MovingBaseline(Advantage):
    """Return minus a moving average of the mean returns of *earlier* rollouts: REINFORCE with a baseline.

    Williams 1992. Unbiased with a token sum; with losses divided by each sequence's length it is not. The first rollout
    has its own mean as baseline.

    Args:
        decay: In [0, 1): weight of the past. Larger is steadier and lags more.

    Raises:
        ConfigurationError: decay is out of range.
    """

    def __init__(self, decay: float = 0.9) -> None:
        check_option(0 <= decay < 1, self, "decay", decay, "in [0, 1)")
        self.decay = float(decay)
        self.baseline: float | None = None

    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """Subtract the baseline, then move it."""
        del num_samples
        returns = masked_sum(rewards, mask, dim=-1)
        mean = float(returns.mean())
        baseline = mean if self.baseline is None else self.baseline
        if math.isfinite(mean):
            self.baseline = self.decay * baseline + (1 - self.decay) * mean
        return spread_over_tokens(returns - baseline, mask)

    def state_dict(self) -> dict[str, float]:
        """The baseline, once there is one."""
        return {} if self.baseline is None else {"baseline": self.baseline}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the baseline."""
        self.baseline = state.get("baseline")


class Whitened(Advantage):
    """Another advantage, scaled to standard deviation 1 and mean 0 over all tokens of the rollout.

    Args:
        advantage: What is whitened: `RewardToGo` gives REINFORCE++, `GroupCentered` its form with a baseline
            (arXiv:2501.03262).
        center: Whether the mean is set to 0, too.
    """

    def __init__(self, advantage: Advantage, center: bool = True) -> None:
        self.advantage = advantage
        self.center = center
        self.min_samples = advantage.min_samples

    def __call__(self, rewards: Tensor, mask: Tensor, num_samples: int) -> Tensor:
        """See `functional.whiten`."""
        return whiten(self.advantage(rewards, mask, num_samples), mask, center=self.center)

    def state_dict(self) -> dict[str, float]:
        """That of what is whitened."""
        return self.advantage.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what is whitened."""
        self.advantage.load_state_dict(state)
