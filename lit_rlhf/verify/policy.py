"""Policy-gradient methods in the tabular world: every group of samples there could be, through the module's own stages.

Sampling and scoring are replaced by enumeration, optimizer steps by the exact expectation; reference, reward shaping,
advantages, surrogate, KL and reduction are the module's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.functional.advantages import discounted_returns
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import (
    GAE,
    GroupPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    REINFORCEPolicyModule,
    ReinforcePPPolicyModule,
    RLHFModule,
    Updates,
)
from lit_rlhf.rewards import NoReward, Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EvaluatedRollout, Generation, Prompts, ScoredRollout, Scores
from lit_rlhf.verify import targets
from lit_rlhf.verify.runner import BETA, PI_STAR, Case, Training, optimum
from lit_rlhf.verify.tabular import PROMPT_TOKEN, TabularWorld, bandit, tree

MakeModule = Callable[[ModelSpec, Reward], PolicyModule]
_GROUP, _ENTROPY = 2, 0.2


@dataclass(frozen=True)
class Drawn:
    """All groups of a world.

    Attributes:
        chance: (groups,) probability of each.
        rollouts: One of all groups, or one of each; at the stage that the module's loss reads.
    """

    chance: Tensor
    rollouts: list[EvaluatedRollout]

    def expected(self, reduction: o.Reduction, losses: Sequence[Tensor]) -> Tensor:
        """Mean numerator over mean denominator of losses (N, T), one for each rollout: both add up over groups."""
        shares = self.chance.split([rollout.num_prompts for rollout in self.rollouts])
        top, bottom = torch.zeros_like(self.chance[0]), torch.zeros_like(self.chance[0])
        for rollout, loss, chance in zip(self.rollouts, losses, shares, strict=True):
            mask, size = rollout.response_mask, rollout.num_samples
            top = top + reduction.numerator(loss * chance.repeat_interleave(size)[:, None], mask)
            # Few groups differ in their lengths, so each mask is reduced once.
            masks, which = mask.reshape(len(chance), -1).unique(dim=0, return_inverse=True)
            sizes = [reduction.denominator(group.view(size, -1)) for group in masks]
            bottom += (chance * torch.stack(sizes)[which]).sum()
        return top / bottom


@dataclass(frozen=True)
class PolicyCase(Case):
    """A policy module and the policy it must end in.

    Attributes:
        make_module: From a spec and a reward to a module without backbone.
        group: Samples of one prompt.
        by_group: Each group is a rollout of its own, for advantages that look at the whole rollout.
    """

    method: str
    target: str
    world: TabularWorld
    make_module: MakeModule
    optimum: Tensor
    group: int = _GROUP
    by_group: bool = False
    training: Training = "follow"
    rate: float = 0.3
    settles: bool = False

    def module(self) -> PolicyModule:
        """A module with the world's reference as policy and reference."""
        return self.world.place(self.make_module(ModelSpec(config={}), NoReward()))

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """Mean numerator over mean denominator of all groups, each as likely as it is drawn."""
        module = cast("PolicyModule", module)
        return self.loss_of(module, self.draw(module))

    @torch.no_grad()
    def draw(self, module: PolicyModule) -> Drawn:
        """All groups there could be, as rollouts ready for the loss, and how likely the policy draws each."""
        groups = list(product(range(len(self.world.completions)), repeat=self.group))
        batches = [[group] for group in groups] if self.by_group else [groups]
        rollouts = [module.estimated(self.collect(module, batch)) for batch in batches]
        return Drawn(self.chances(module, torch.tensor(groups)), rollouts)

    def loss_of(self, module: PolicyModule, drawn: Drawn) -> Tensor:
        """The expected loss of the policy as it is now, on what was drawn."""
        return drawn.expected(module.reduction, [module.loss(each).loss for each in drawn.rollouts])

    def chances(self, module: PolicyModule, groups: Tensor) -> Tensor:
        """Probability (n,) of groups of completions (n, group): samples of the policy, as it is."""
        return self.world.policy(module.backbone)[groups].prod(-1)

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The groups as a rollout of the policy, as `PolicyModule.collect` gives it."""
        picked = torch.tensor(groups).flatten()
        ids = torch.full((len(groups), 1), PROMPT_TOKEN)
        tokens, mask = (padded[picked] for padded in self.world.padded)
        drawn = Generation(tokens, mask, self.world.finished[picked])
        scores = Scores(self.world.rewards[picked])
        return module.evaluate(ScoredRollout(Prompts(ids, ids == PROMPT_TOKEN), drawn, scores))


@dataclass(frozen=True)
class CriticCase(PolicyCase):
    """With a critic: at the target it knows the expected rewards to come of each state, else it starts at 0."""

    def write(self, module: RLHFModule, values: Tensor) -> None:
        """The policy, and the values of its states."""
        super().write(module, values)
        module = cast("PPOPolicyModule", module)
        drawn = self.draw(module)
        (rollout,) = drawn.rollouts
        rewards, mask = module.shape_rewards(rollout), rollout.response_mask
        to_go = discounted_returns(rewards, mask, module.gae.gamma)
        weight = cast("Tensor", module.backbone.heads["value"].weight)
        total, mass = torch.zeros_like(weight), torch.full_like(weight, 1e-300)
        for y, tokens in enumerate(self.world.completions):
            for t in range(len(tokens)):
                state = self.world.state(tokens[:t])
                total[state] += drawn.chance[y] * to_go[y, t]
                mass[state] += drawn.chance[y]
        with torch.no_grad():
            weight.copy_(total / mass)


def policy_cases() -> list[PolicyCase]:
    """Methods of single samples, and the places of the KL that a group method may choose."""
    deep, flat, few, three = tree(), bandit(), bandit(2), bandit(3)
    options: dict[str, Any] = {"kl": o.FixedKL(BETA), "sampling": Sampling(max_new_tokens=2)}
    grouped = {**options, "num_samples": _GROUP}
    gae, once = GAE(lam=1.0, whiten=False), Updates(epochs=1)
    ppo = partial(PPOPolicyModule, gae=gae, updates=once, **options)
    terminal, curious = partial(ppo, terminal_kl=True), partial(ppo, entropy_coef=_ENTROPY)
    reinforce = partial(REINFORCEPolicyModule, **options)
    whitened = partial(ReinforcePPPolicyModule, **options)
    normalized = partial(GroupPolicyModule, advantage=o.GroupNormalized(), **grouped)
    of_batch = partial(GroupPolicyModule, advantage=o.BatchNormalized(), **grouped)
    summed, sequence = o.SequenceSum(), o.SequenceK2()
    biased = partial(GroupPolicyModule, kl_loss=o.BiasedK3(), reduction=summed, **grouped)
    centred = o.Whitened(o.GroupCentered())
    baseline = partial(ReinforcePPPolicyModule, advantage=centred, kl_loss=sequence, **grouped)
    total = BETA + _ENTROPY
    generous = targets.tilted(flat.reference.pow(BETA / total), flat.rewards / total)
    forward = targets.forward_kl_optimum(flat.reference, flat.rewards, BETA)

    def slope(u: Tensor) -> Tensor:
        # Of two samples, whitened together, A is +-1/sqrt(2); the optimum is where E[A|y] - beta u is flat.
        policy, signs = three.reference * u.exp(), three.rewards[:, None] - three.rewards[None, :]
        return -policy * (signs.sign() @ policy / 2**0.5 - BETA * u)

    signs = targets.anchored_optimum(three.reference, slope, flow=200)
    best, best_few = optimum(deep), optimum(few)
    single = partial(PolicyCase, group=1)
    # Quasi-Newton steps run astray on bandits, and whitened advantages don't fade near the optimum: the rate must.
    slow, group = partial(single, training="descend"), partial(PolicyCase, by_group=True)
    bonus, all_of = "ref^(b/(b+c)) exp(r/(b+c))", "REINFORCE++ (tree, one rollout of all)"
    in_reward, text = partial(PolicyCase, training="descend"), "ref exp(E[A|y]/beta)"
    return [
        single("PPO (lam=1)", PI_STAR, deep, ppo, best),
        single("PPO (terminal KL)", PI_STAR, deep, terminal, best),
        slow("PPO (bandit)", PI_STAR, few, ppo, best_few),
        slow("PPO (entropy bonus)", bonus, flat, curious, generous),
        single("REINFORCE", PI_STAR, deep, reinforce, best),
        slow("REINFORCE (bandit)", PI_STAR, few, reinforce, best_few),
        group("REINFORCE++", PI_STAR, few, whitened, best_few, training="descend"),
        slow(all_of, PI_STAR, deep, whitened, best),
        in_reward("GRPO (KL in the reward)", PI_STAR, flat, normalized, optimum(flat)),
        in_reward("batch-normalized (KL in the reward)", PI_STAR, flat, of_batch, optimum(flat)),
        PolicyCase("leave-one-out + biased k3", "beta ref/(L - r)", flat, biased, forward),
        group("REINFORCE++ (with a baseline)", text, three, baseline, signs),
    ]
