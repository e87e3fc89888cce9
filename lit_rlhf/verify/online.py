r"""Online preference methods: every pair there could be, labelled by the oracle, through the module's own stages."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.modules import (
    MixtureOpponent,
    NashMDPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    SPPOPolicyModule,
    XPOPolicyModule,
)
from lit_rlhf.types import EvaluatedRollout
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.exact import PI_STAR, optimum
from lit_rlhf.verify.policy import MakeModule, PolicyCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

_ALPHA = 0.05
_MIXTURE = 0.3
_ROOT = "phi'(u) = pi * sum phi'"


@dataclass(frozen=True)
class PairCase(PolicyCase):
    """A method of pairs.

    Attributes:
        drawn: Who draws a pair: the policy both; the policy and the reference; the policy and a mixture of both; or the
            reference both, which stands for the policy of the rollout whose step is taken.
        mixture: The reference's weight in the mixture.
    """

    drawn: Literal["policy", "reference", "mixture", "before"] = "policy"
    mixture: float = _MIXTURE

    def chances(self, module: PolicyModule, groups: Tensor) -> Tensor:
        """Of pairs (n, 2)."""
        policy, ref = self.world.policy(module.backbone), self.world.reference
        first = ref if self.drawn == "before" else policy
        second = {"policy": policy, "mixture": token_mixture(self.world, policy, self.mixture)}.get(
            self.drawn, ref
        )
        return first[groups[:, 0]] * second[groups[:, 1]]

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The pairs as a rollout."""
        rollout = super().collect(module, groups)
        return (
            replace(rollout, old_logprobs=rollout.ref_logprobs)
            if self.drawn == "before"
            else rollout
        )


def pair_cases() -> list[PairCase]:
    """On the bandit and on the tree."""
    return [*_dpo_cases(), *_other_cases(), *_games()]


def _dpo_cases() -> list[PairCase]:
    flat, few, deep, two = bandit(), bandit(3), tree(), bandit(2)
    dpo, hot = partial(OnlineDPOPolicyModule, loss=o.DPO(BETA)), o.SoftLabels(2.0)
    greedy = partial(OnlineDPOPolicyModule, loss=o.DPO(BETA), oracle=o.HardLabels())
    wide = targets.tilted(deep.reference, deep.rewards / (2 * BETA))
    return [
        PairCase("OnlineDPO", PI_STAR, deep, dpo, optimum(deep)),
        # Pairs of likely completions alone teach much, so quasi-Newton steps run astray.
        PairCase(
            "OnlineDPO (bandit)", PI_STAR, few, dpo, optimum(few), training="descend", rate=0.5
        ),
        PairCase(
            "OnlineDPO (temperature=2)", "ref exp(r/2beta)", deep, partial(dpo, oracle=hot), wide
        ),
        # The pairs that still teach die out with the worse completion, so steps must not shrink.
        PairCase(
            "OnlineDPO (hard labels)",
            "greedy (no finite optimum)",
            two,
            greedy,
            targets.greedy(two.rewards),
            rate=3.0,
            training="descend",
        ),
        PairCase("XPO (alpha=0)", PI_STAR, deep, _xpo(0.0), optimum(deep), drawn="reference"),
        PairCase(
            "XPO (bandit, alpha=0)", PI_STAR, flat, _xpo(0.0), optimum(flat), drawn="reference"
        ),
    ]


def _other_cases() -> list[PairCase]:
    cases = []
    sppo = partial(SPPOPolicyModule, loss=o.SPPO(BETA))
    for name, world in (("tree", tree()), ("bandit", bandit())):
        xpo_best, sppo_best = xpo_optimum(world, BETA, _ALPHA), sppo_optimum(world, BETA)
        cases += [
            PairCase(f"XPO ({name})", _ROOT, world, _xpo(_ALPHA), xpo_best, drawn="reference"),
            PairCase(f"SPPO ({name}, a step)", _ROOT, world, sppo, sppo_best, drawn="before"),
        ]
    return cases


def xpo_optimum(world: TabularWorld, beta: float, alpha: float) -> Tensor:
    """Online DPO of the policy against the reference, with optimism."""
    ref, wins = world.reference, data.preference_probabilities(world)

    def slope(u: Tensor) -> Tensor:
        # Each pair pulls its first by this and its second back by as much; the bonus pushes the reference's down.
        pull = (
            beta
            * ((beta * (u[:, None] - u[None, :])).sigmoid() - wins)
            * (ref * u.exp())[:, None]
            * ref[None, :]
        )
        return pull.sum(1) - pull.sum(0) + alpha * ref

    return targets.anchored_optimum(ref, slope)


def sppo_optimum(world: TabularWorld, beta: float) -> Tensor:
    """Of the step from the reference."""
    ref, wins = world.reference, data.preference_probabilities(world)
    return targets.anchored_optimum(ref, lambda u: ref * (u - (wins @ ref - 0.5) / beta))


def _games() -> list[PairCase]:
    module = partial(NashMDPolicyModule, opponent=MixtureOpponent(_MIXTURE), kl=o.FixedKL(BETA))
    return [
        PairCase(
            f"NashMD ({name})",
            "ref exp(P(y>mix)/beta)",
            world,
            module,
            nash_optimum(world, BETA, _MIXTURE),
            drawn="mixture",
        )
        for name, world in (("tree", tree()), ("bandit", bandit()))
    ]


def nash_optimum(world: TabularWorld, beta: float, mixture: float) -> Tensor:
    """The policy that is the answer to its own mixture with the reference."""
    wins = data.preference_probabilities(world)

    def answer(policy: Tensor) -> Tensor:
        return targets.tilted(world.reference, wins @ token_mixture(world, policy, mixture) / beta)

    return targets.fixed_point(answer, world.reference)


def token_mixture(world: TabularWorld, policy: Tensor, weight: float = _MIXTURE) -> Tensor:
    r"""(Y,): the distribution whose tokens follow $\pi^{1-a}\pi_{ref}^a$, normalised at each state."""
    mixed = torch.ones_like(policy)
    for y, tokens in enumerate(world.completions):
        for t in range(len(tokens)):
            begun = [k for k, other in enumerate(world.completions) if other[:t] == tokens[:t]]
            choices = sorted({world.completions[k][t] for k in begun})
            shares = [
                torch.stack(
                    [
                        p[[k for k in begun if world.completions[k][t] == token]].sum()
                        for token in choices
                    ]
                ).log()
                for p in (policy, world.reference)
            ]
            logits = (1 - weight) * shares[0] + weight * shares[1]
            mixed[y] *= logits.softmax(-1)[choices.index(tokens[t])]
    return mixed


def _xpo(alpha: float) -> MakeModule:
    return partial(XPOPolicyModule, loss=o.DPO(BETA), alpha=alpha)
