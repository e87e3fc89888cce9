"""Advantages without a critic: the classes to inject into group methods."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from lit_rlhf.errors import CheckpointError
from lit_rlhf.functional.advantages import (
    discounted_returns,
    group_centered,
    group_sizes,
    spread_over_tokens,
)
from lit_rlhf.functional.masking import masked_mean, masked_sum, whiten
from lit_rlhf.functional.shapes import Mask, Tokens
from lit_rlhf.options import check_option


class Advantage(ABC):
    """Rewards of tokens to advantages of tokens, over the rollouts of *all* ranks.

    Rewards already hold what the algorithm puts there (score at the end, KL terms). A sequence's return is their sum.
    Sequences without tokens, which couldn't be scored, are not there: no baseline counts them.
    """

    min_samples: int = 1
    """How many samples of each prompt it takes; fewer are refused before anything is sampled."""

    @abstractmethod
    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
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
    r"""$R_i - \frac{1}{G-1}\sum_{j\ne i}R_j$: return minus the mean return of the prompt's *other* samples.

    RLOO, arXiv:2402.14740. The baseline of a sample doesn't depend on it, so the policy gradient is unbiased.

    Raises:
        ConfigurationError: When called: G is below 2 or does not divide the number of sequences.

    Example:
        >>> import torch
        >>> rewards, mask = torch.tensor([[1.0], [0.0], [0.0]]), torch.ones(3, 1, dtype=torch.bool)
        >>> LeaveOneOut()(rewards, mask, 3).flatten()
        tensor([ 1.0000, -0.5000, -0.5000])
    """

    min_samples = 2

    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
        """See the class."""
        centered = group_centered(masked_sum(rewards, mask, dim=-1), num_samples, mask.any(-1))
        sizes = group_sizes(mask.any(-1), num_samples).to(centered.dtype)  # (N,)
        return spread_over_tokens(centered * (sizes / (sizes - 1).clamp_min(1)), mask)


class GroupCentered(Advantage):
    r"""$R_i - \frac1G\sum_j R_j$: return minus the mean return of the prompt's samples (Dr. GRPO, arXiv:2503.20783).

    The mean includes the sample itself, so the expected gradient is (G - 1)/G of the true one: with a KL term in the
    *loss* the effective coefficient is beta * G / (G - 1).
    """

    min_samples = 2

    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
        """See the class."""
        centered = group_centered(masked_sum(rewards, mask, dim=-1), num_samples, mask.any(-1))
        return spread_over_tokens(centered, mask)


class _Normalized(Advantage):
    """Return minus the mean return of the prompt's samples, divided by a deviation."""

    min_samples = 2

    def __init__(self, eps: float = 1e-4) -> None:
        check_option(eps > 0, self, "eps", eps, "above 0: equal returns would give nan")
        self.eps = float(eps)

    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
        """See the class."""
        there = mask.any(-1)  # (N,)
        returns = masked_sum(rewards, mask, dim=-1)
        centered = group_centered(returns, num_samples, there)
        std = self.deviation(returns, centered, there, num_samples)
        return spread_over_tokens(centered / (std + self.eps), mask)

    @abstractmethod
    def deviation(
        self, returns: Tensor, centered: Tensor, there: Tensor, num_samples: int
    ) -> Tensor:
        """Of returns (N,), also given less their prompt's mean: (N,), or () for all. Where not `there` none counts."""


class GroupNormalized(_Normalized):
    r"""$(R_i - \text{mean})/(\text{std} + \epsilon)$ over the prompt's samples (GRPO, arXiv:2402.03300).

    The standard deviation is the unbiased one (divided by G - 1). Dividing by it weighs prompts by how sure the policy
    is, and makes a KL term in the loss count relative to it.

    Args:
        eps: Above 0, added to the standard deviation: groups whose returns differ by less are held back instead of
            blown up.

    Raises:
        ConfigurationError: eps is not above 0.
    """

    def deviation(
        self, returns: Tensor, centered: Tensor, there: Tensor, num_samples: int
    ) -> Tensor:
        """Of each prompt's samples."""
        squares = centered.square().view(-1, num_samples).sum(-1).repeat_interleave(num_samples)
        return (squares / (group_sizes(there, num_samples) - 1).clamp_min(1)).sqrt()


class BatchNormalized(_Normalized):
    r"""$(R_i - \text{mean of the group})/(\text{std of the batch} + \epsilon)$ (arXiv:2508.08221).

    As `GroupNormalized`, but all prompts are divided by one number, the unbiased standard deviation of all returns of
    the rollout, between prompts too: prompts on which the policy is sure get no more weight than their returns differ.

    Args:
        eps: Above 0, added to the standard deviation.

    Raises:
        ConfigurationError: eps is not above 0.
    """

    def deviation(
        self, returns: Tensor, centered: Tensor, there: Tensor, num_samples: int
    ) -> Tensor:
        """Of all samples."""
        squares = (returns - masked_mean(returns, there)).square()
        return (masked_sum(squares, there) / (there.sum() - 1).clamp_min(1)).sqrt()


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

    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
        """See the class."""
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

    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
        """Subtract the baseline, then move it."""
        del num_samples
        returns = masked_sum(rewards, mask, dim=-1)
        mean = float(masked_mean(returns, mask.any(-1)))
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

    def __call__(self, rewards: Tokens, mask: Mask, num_samples: int) -> Tokens:
        """See the class."""
        return whiten(self.advantage(rewards, mask, num_samples), mask, center=self.center)

    def state_dict(self) -> dict[str, float]:
        """That of what is whitened."""
        return self.advantage.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what is whitened."""
        self.advantage.load_state_dict(state)
