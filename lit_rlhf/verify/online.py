r"""Online preference methods: every pair there could be, labelled by the oracle, through the module's own stages."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

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
from lit_rlhf.verify.policy import PolicyCase
from lit_rlhf.verify.runner import BETA, PI_STAR, optimum
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
        mixed = token_mixture(self.world, policy, self.mixture)
        second = {"policy": policy, "mixture": mixed}.get(self.drawn, ref)
        return first[groups[:, 0]] * second[groups[:, 1]]

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The pairs as a rollout."""
        rollout = super().collect(module, groups)
        if self.drawn != "before":
            return rollout
        return replace(rollout, old_logprobs=rollout.ref_logprobs)


def pair_cases() -> list[PairCase]:
    """On the bandit and on the tree."""
    flat, few, deep, two = bandit(), bandit(3), tree(), bandit(2)
    dpo = partial(OnlineDPOPolicyModule, loss=o.DPO(BETA))
    hot, hard = partial(dpo, oracle=o.SoftLabels(2.0)), partial(dpo, oracle=o.HardLabels())
    xpo = partial(XPOPolicyModule, loss=o.DPO(BETA))
    plain, curious = partial(xpo, alpha=0.0), partial(xpo, alpha=_ALPHA)
    sppo = partial(SPPOPolicyModule, loss=o.SPPO(BETA))
    nash = partial(NashMDPolicyModule, opponent=MixtureOpponent(_MIXTURE), kl=o.FixedKL(BETA))
    wide, best = targets.tilted(deep.reference, deep.rewards / (2 * BETA)), optimum(deep)
    greedy, text = targets.greedy(two.rewards), "greedy (no finite optimum)"
    slow, against = partial(PairCase, training="descend"), partial(PairCase, drawn="reference")
    before, game = partial(PairCase, drawn="before"), partial(PairCase, drawn="mixture")
    cases = [
        PairCase("OnlineDPO", PI_STAR, deep, dpo, best),
        # Pairs of likely completions alone teach much, so quasi-Newton steps run astray.
        slow("OnlineDPO (bandit)", PI_STAR, few, dpo, optimum(few), rate=0.5),
        PairCase("OnlineDPO (temperature=2)", "ref exp(r/2beta)", deep, hot, wide),
        # The pairs that still teach die out with the worse completion, so steps must not shrink.
        slow("OnlineDPO (hard labels)", text, two, hard, greedy, rate=3.0),
        against("XPO (alpha=0)", PI_STAR, deep, plain, best),
        against("XPO (bandit, alpha=0)", PI_STAR, flat, plain, optimum(flat)),
    ]
    for name, world in (("tree", deep), ("bandit", flat)):
        xpo_best, sppo_best = xpo_optimum(world, BETA, _ALPHA), sppo_optimum(world, BETA)
        equilibrium = nash_optimum(world, BETA, _MIXTURE)
        cases += [
            against(f"XPO ({name})", _ROOT, world, curious, xpo_best),
            before(f"SPPO ({name}, a step)", _ROOT, world, sppo, sppo_best),
            game(f"NashMD ({name})", "ref exp(P(y>mix)/beta)", world, nash, equilibrium),
        ]
    return cases


def xpo_optimum(world: TabularWorld, beta: float, alpha: float) -> Tensor:
    """Online DPO of the policy against the reference, with optimism."""
    ref, wins = world.reference, data.preference_probabilities(world)

    def slope(u: Tensor) -> Tensor:
        # Each pair pulls its first by this and its second back by as much; the bonus pushes the reference's down.
        excess = (beta * (u[:, None] - u[None, :])).sigmoid() - wins
        pull = beta * excess * (ref * u.exp())[:, None] * ref[None, :]
        return pull.sum(1) - pull.sum(0) + alpha * ref

    return targets.anchored_optimum(ref, slope)


def sppo_optimum(world: TabularWorld, beta: float) -> Tensor:
    """Of the step from the reference."""
    ref, wins = world.reference, data.preference_probabilities(world)
    return targets.anchored_optimum(ref, lambda u: ref * (u - (wins @ ref - 0.5) / beta))


def nash_optimum(world: TabularWorld, beta: float, mixture: float) -> Tensor:
    """The policy that is the answer to its own mixture with the reference."""
    wins = data.preference_probabilities(world)

    def answer(policy: Tensor) -> Tensor:
        return targets.tilted(world.reference, wins @ token_mixture(world, policy, mixture) / beta)

    return targets.fixed_point(answer, world.reference)


def token_mixture(world: TabularWorld, policy: Tensor, weight: float = _MIXTURE) -> Tensor:
    r"""(Y,): the distribution whose tokens follow $\pi^{1-a}\pi_{ref}^a$, normalised at each state."""
    through, together = world.steps
    own, ref = ((through @ p).clamp_min(1e-300).log() for p in (policy, world.reference))
    logits = (1 - weight) * own + weight * ref
    return ((logits - (together @ logits.exp()).log()) @ through).exp()
