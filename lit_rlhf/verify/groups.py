r"""Group methods in both worlds, with all groups of two and of three.

$\bar A(y)$ is the mean advantage of y over what else may be in its group. Where the loss sums over tokens, the policy
settles where $\bar A - \beta u$ is flat; a mean over the tokens of each completion makes long ones count less at each,
which `targets.token_optimum` solves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.modules import (
    CISPOPolicyModule,
    DAPOPolicyModule,
    DrGRPOPolicyModule,
    GroupPolicyModule,
    GRPOPolicyModule,
    GSPOPolicyModule,
    PolicyModule,
    RLOOPolicyModule,
)
from lit_rlhf.rollout import Sampling
from lit_rlhf.verify import targets
from lit_rlhf.verify.policy import PolicyCase
from lit_rlhf.verify.runner import BETA, PI_STAR, Training, optimum
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

_EPS = 1e-4


@dataclass(frozen=True)
class GroupMethod:
    """A method for groups of any size, and the policy it ends in.

    Attributes:
        text: The target in words.
        make_module: Without `num_samples`.
        best: From a world and a group size to the target.
        astray: Longest completion and group size where quasi-Newton steps run astray.
    """

    text: str
    make_module: Callable[..., PolicyModule]
    best: Callable[[TabularWorld, int], Tensor]
    astray: Sequence[tuple[int, int]] = ()

    def case(self, name: str, world: TabularWorld, group: int, best: Tensor) -> PolicyCase:
        """The row."""
        make = partial(self.make_module, num_samples=group)
        training: Training = "descend" if (world.depth, group) in self.astray else "follow"
        return PolicyCase(name, self.text, world, make, best, group=group, training=training)


def group_methods() -> dict[str, GroupMethod]:
    """By name."""
    options: dict[str, Any] = {"kl": o.FixedKL(BETA), "sampling": Sampling(max_new_tokens=2)}
    summed = partial(GroupPolicyModule, reduction=o.SequenceSum(), **options)
    dapo = partial(DAPOPolicyModule, overlong_penalty=0.0, **options)
    flat, per_token = "ref exp(E[A|y]/beta)", "tokens' pulls balance, A and k3 over n"
    return {
        "RLOO": GroupMethod(
            PI_STAR, partial(RLOOPolicyModule, **options), _exact, [(1, 2), (1, 3)]
        ),
        "leave-one-out + k2": GroupMethod(PI_STAR, partial(summed, kl_loss=o.SequenceK2()), _exact),
        "leave-one-out + k3": GroupMethod(PI_STAR, partial(summed, kl_loss=o.UnbiasedK3()), _exact),
        "DrGRPO": GroupMethod(
            "ref exp(r (G-1)/(G beta))", partial(DrGRPOPolicyModule, **options), shrunk_optimum
        ),
        "GRPO": GroupMethod(per_token, partial(GRPOPolicyModule, **options), per_token_optimum),
        "GSPO": GroupMethod(per_token, partial(GSPOPolicyModule, **options), per_token_optimum),
        "CISPO": GroupMethod(flat, partial(CISPOPolicyModule, **options), ranked_optimum, [(2, 3)]),
        "DAPO": GroupMethod(flat, dapo, ranked_optimum, [(2, 3)]),
    }


def group_cases() -> list[PolicyCase]:
    """Each method in each world with groups of each size."""
    worlds = {"bandit": bandit(3), "tree": tree()}
    solved = cache(lambda best, where, group: best(worlds[where], group))  # of several methods one
    return [
        method.case(f"{name} ({where}, G={group})", world, group, solved(method.best, where, group))
        for name, method in group_methods().items()
        for where, world in worlds.items()
        for group in (2, 3)
    ]


def mean_normalized_advantages(rewards: Tensor, group: int) -> targets.Function:
    r"""From a policy to $E[A(y)]$, both (Y,), of scores normalised in a group with G - 1 others of the policy."""
    groups = torch.tensor(list(product(range(len(rewards)), repeat=group)))
    groups = groups.view(len(rewards), -1, group)  # (Y, groups that begin with y, G)
    centered = rewards[groups] - rewards[groups].mean(-1, keepdim=True)
    spread = (centered.square().sum(-1) / (group - 1)).sqrt()
    others, advantages = groups[0, :, 1:], centered[..., 0] / (spread + _EPS)
    return lambda policy: advantages @ policy[others].prod(-1)


def _exact(world: TabularWorld, group: int) -> Tensor:
    del group
    return optimum(world)


def shrunk_optimum(world: TabularWorld, group: int, beta: float = BETA) -> Tensor:
    """Of centered scores, whose mean holds the sample itself."""
    return targets.tilted(world.reference, world.rewards * (group - 1) / (group * beta))


def ranked_optimum(world: TabularWorld, group: int, beta: float = BETA) -> Tensor:
    """Of normalised scores and a sum over tokens."""
    advantages = mean_normalized_advantages(world.rewards, group)

    def slope(u: Tensor) -> Tensor:
        policy = world.reference * u.exp()
        return -policy * (advantages(policy) - beta * u)

    return targets.anchored_optimum(world.reference, slope, flow=200)


def per_token_optimum(world: TabularWorld, group: int, beta: float = BETA) -> Tensor:
    """Of normalised scores and a mean over the tokens of each completion."""
    ref, advantages = _token_logprobs(world), mean_normalized_advantages(world.rewards, group)

    def slope(logprobs: Tensor) -> Tensor:
        policy, u = logprobs.sum(-1).exp(), logprobs - ref
        k3 = (-u).exp() - 1 + u
        # A token's own k3, and that of it and all later ones, which it leads to.
        penalty = 1 - (-u).exp() + k3.flip(-1).cumsum(-1).flip(-1)
        return (policy / world.lengths)[:, None] * (beta * penalty - advantages(policy)[:, None])

    return targets.token_optimum(world.completions, world.reference, slope, flow=200)


def _token_logprobs(world: TabularWorld) -> Tensor:
    """(Y, T) of the reference: what each token does to the probability of what is to come; 0 behind the end."""
    result = torch.zeros(len(world.completions), world.depth, dtype=world.reference.dtype)
    for y, tokens in enumerate(world.completions):
        starts = [tokens[:t] for t in range(len(tokens) + 1)]
        inside = [[y[: len(start)] == start for y in world.completions] for start in starts]
        begun = [world.reference[own].sum() for own in inside]
        result[y, : len(tokens)] = (torch.stack(begun[1:]) / torch.stack(begun[:-1])).log()
    return result
