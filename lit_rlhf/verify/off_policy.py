r"""Rollouts of an earlier policy than the one that learns from them, against the gradient written out token by token.

On-policy every ratio is 1 and every clip is idle, so the optimum says nothing of them. Here the policy that drew and
the one that learns differ by up to a factor of several at each token, up and down, some completions are cut at the
length limit, and the critic is far off. What is compared is computed by loops over numbers, from the table of logits:
no ratio, clip, mask, or GAE of the library has a part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.modules import (
    GAE,
    CISPOPolicyModule,
    DAPOPolicyModule,
    GRPOPolicyModule,
    GSPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    ReinforcePPPolicyModule,
    RLHFModule,
    RLOOPolicyModule,
    ValueLoss,
)
from lit_rlhf.modules.ppo import PPORollout
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EstimatedRollout, EvaluatedRollout, ScoredRollout
from lit_rlhf.verify import targets
from lit_rlhf.verify.policy import CriticCase, Drawn, MakeModule, PolicyCase
from lit_rlhf.verify.runner import BETA, PI_STAR, Case, optimum
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

TEXT = "gradient by token, off-policy"
_PENALTY = 0.3
_WHITEN_EPS = 1e-8
_DRIFTS = (1e-5, 0.05, 0.6, -0.6, 2.0)
"""How far the learning policy has moved: within every clip, within PPO's, and beyond it both ways."""


@dataclass(frozen=True)
class OffPolicyCase(Case):
    """The gradient of a policy-gradient module on rollouts of an earlier policy.

    `gradient_norm` of its row is the largest difference from the gradient by token, of the policy's logits, and
    `distance` that of the critic's (0 where there is none). The KL that is a term of the loss is left out.

    Attributes:
        base: The module and its world.
    """

    method: str
    target: str
    world: TabularWorld
    optimum: Tensor
    base: PolicyCase

    @classmethod
    def of(cls, base: PolicyCase) -> Self:
        """Of a module and its world; nothing is trained to the optimum here."""
        name, _, rest = base.method.partition(" (")
        about = f"{rest.removesuffix(')')}, off-policy" if rest else "off-policy"
        method = f"{name} ({about})"
        return cls(method, TEXT, base.world, base.optimum, base=base)

    def module(self) -> PolicyModule:
        """With a penalty for cut completions, and no KL as a term of the loss."""
        module = self.base.module()
        if not module.missing_eos_penalty:
            module.missing_eos_penalty = _PENALTY
        if getattr(module, "kl_loss", None) is not None:
            module.kl = o.FixedKL(0.0)
        return module

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """On-policy."""
        return self.base.expected_loss(module)

    def measure(self) -> tuple[float, float]:
        """The largest differences over all drifts."""
        module, world = self.module(), self.world
        earlier = targets.tilted(world.reference, 0.5 * world.rewards.flip(0))
        self.write(module, earlier)
        _set_critic(module, 1.5)
        drawn = self.base.draw(module)
        pull = torch.linspace(-1, 1, len(earlier), dtype=earlier.dtype).roll(2)
        worst = [0.0, 0.0]
        for drift in _DRIFTS:
            self.write(module, targets.tilted(earlier, drift * pull))
            _set_critic(module, 1.5 + drift)
            by_token = [self.loss_by_token(module, each) for each in drawn.rollouts]
            found = self.base.loss_of(module, drawn)
            difference = found - drawn.expected(module.reduction, by_token)
            trained = [p for p in module.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(difference, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                place = 0 if parameter is self.table(module) else 1
                if gradient is not None:
                    worst[place] = max(worst[place], float(gradient.norm()))
        return worst[0], worst[1]

    def loss_by_token(self, module: PolicyModule, rollout: EvaluatedRollout) -> Tensor:
        """(N, T), whose gradient is what the module claims."""
        rollout = EstimatedRollout.of(rollout)
        table, temperature, rows = self.table(module), module.sampling.temperature, []
        ppo = module if isinstance(module, PPOPolicyModule) else None
        advantages: list[list[float]] = rollout.advantages.tolist()
        returns: list[list[float]] = []
        if ppo:
            advantages, returns = _gae_by_token(ppo, cast("PPORollout", rollout))
        for n, mask in enumerate(rollout.response_mask):
            tokens = tuple(rollout.completions.tokens[n][mask].tolist())
            states = [self.world.state(tokens[:t]) for t in range(len(tokens))]
            steps = [(table[:, state] / temperature).log_softmax(0) for state in states]
            logprobs = [step[token] for step, token in zip(steps, tokens, strict=True)]
            old = rollout.old_logprobs[n].tolist()
            moved = [new.item() - before for new, before in zip(logprobs, old, strict=False)]
            row = []
            for t, logprob in enumerate(logprobs):
                weight = weight_of(module.surrogate, moved, t, advantages[n][t])
                loss = -weight * advantages[n][t] * logprob
                if ppo:
                    entropy = -(steps[t].exp() * steps[t]).sum()
                    value = cast("Tensor", ppo.backbone.heads["value"].weight)[states[t]]
                    before = float(cast("PPORollout", rollout).values[n, t])
                    error = _value_error(ppo.value_loss, value, before, returns[n][t])
                    loss = loss + ppo.value_loss.coef * error - ppo.entropy_coef * entropy
                row.append(loss)
            row += [table.new_zeros(())] * (len(mask) - len(row))
            rows.append(torch.stack(row))
        return torch.stack(rows)


def weight_of(surrogate: o.Surrogate, moved: Sequence[float], t: int, advantage: float) -> float:
    """What multiplies the advantage and the gradient of a token's log-prob.

    Args:
        surrogate: Of a class of the library, or a class under one.
        moved: Log-ratios of the tokens of the sequence.
        t: Which token.
        advantage: Of this token.
    """
    change = sum(moved) / len(moved) if isinstance(surrogate, o.SequenceClipped) else moved[t]
    ratio = float(torch.tensor(change, dtype=torch.float64).exp())
    if isinstance(surrogate, o.WeightClipped):
        low = 0.0 if surrogate.low is None else 1 - surrogate.low
        return min(max(ratio, low), 1 + surrogate.high)
    if isinstance(surrogate, o.ClippedSurrogate | o.SequenceClipped):
        better = advantage > 0 and ratio > 1 + surrogate.high
        worse = advantage < 0 and ratio < 1 - surrogate.low
        dual = getattr(surrogate, "dual", None)
        bounded = dual is not None and advantage < 0 and ratio > dual
        return 0.0 if better or worse or bounded else ratio
    return 1.0


def has_known_weights(surrogate: o.Surrogate) -> bool:
    """Whether `weight_of` knows what the surrogate claims."""
    known = o.ClippedSurrogate, o.SequenceClipped, o.WeightClipped, o.Reinforce
    return isinstance(surrogate, known)


def _value_error(options: ValueLoss, value: Tensor, before: float, wanted: float) -> Tensor:
    error = (value - wanted) ** 2
    if options.clip is None:
        return error / 2
    far = value.item() - before
    moved = value - before if abs(far) <= options.clip else options.clip * (far / abs(far))
    clipped = (before + moved - wanted) ** 2
    return torch.as_tensor(clipped if bool(clipped > error) else error) / 2


def _gae_by_token(
    module: PPOPolicyModule, rollout: PPORollout
) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns as the sums that define them."""
    gae, advantages, returns = module.gae, [], []
    for n, mask in enumerate(rollout.response_mask):
        last = int(mask.sum()) - 1
        old, ref = rollout.old_logprobs[n].tolist(), rollout.ref_logprobs[n].tolist()
        values = [*rollout.values[n].tolist()[: last + 1], 0.0]
        kl = [module.kl.value * (old[t] - ref[t]) for t in range(last + 1)]
        rewards = [0.0] * (last + 1) if module.terminal_kl else [-each for each in kl]
        rewards[last] += float(rollout.scores.total[n]) - (sum(kl) if module.terminal_kl else 0.0)
        if not rollout.completions.finished[n]:
            rewards[last] -= module.missing_eos_penalty
        errors = [rewards[t] + gae.gamma * values[t + 1] - values[t] for t in range(last + 1)]
        fade = gae.gamma * gae.lam
        ends = range(last + 1)
        advantages.append([sum(fade ** (s - t) * errors[s] for s in ends[t:]) for t in ends])
        returns.append([a + v for a, v in zip(advantages[-1], values, strict=False)])
    if gae.whiten:
        every = torch.tensor([a for row in advantages for a in row], dtype=torch.float64)
        mean, variance = float(every.mean()), float(every.var())
        scale = (variance + _WHITEN_EPS) ** -0.5
        advantages = [[(a - mean) * scale for a in row] for row in advantages]
    return advantages, returns


def _set_critic(module: PolicyModule, size: float) -> None:
    """Values far from right, and different in each state."""
    for head in module.backbone.heads.values():
        weight = cast("Tensor", head.weight)
        with torch.no_grad():
            weight.copy_(size * torch.linspace(-1, 1, len(weight), dtype=weight.dtype).cos())


@dataclass(frozen=True)
class ReuseCase(PolicyCase):
    """Several updates of each rollout, the later ones by the ratio to the policy that drew.

    Attributes:
        updates: Of one rollout.
    """

    updates: int = 4

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """On a rollout that is drawn anew after so many updates."""
        module = cast("PolicyModule", module)
        count, drawn = module.__dict__.get("_reused", (0, None))
        if count % self.updates == 0:
            drawn = self.draw(module)
        module.__dict__["_reused"] = (count + 1, drawn)
        return self.loss_of(module, drawn)


@dataclass(frozen=True)
class ReuseCriticCase(ReuseCase, CriticCase):
    """The same with a critic, which starts far off."""

    def module(self) -> PolicyModule:
        """With values that are wrong by more than the rewards differ."""
        module = super().module()
        _set_critic(module, 3.0)
        return module


@dataclass(frozen=True)
class EarlierCase(PolicyCase):
    """All rollouts are the reference's, whatever the policy is."""

    def draw(self, module: PolicyModule) -> Drawn:
        """By the reference."""
        now = self.world.policy(module.backbone)
        self.write(module, self.world.reference)
        drawn = super().draw(module)
        self.write(module, now)
        return drawn


@dataclass(frozen=True)
class CorrectedCase(PolicyCase):
    """What other weights drew is learned from with importance weights, as of an engine that is behind.

    Attributes:
        behind: Whether those are the weights of a step before; else they are the reference's throughout.
    """

    behind: bool = True

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """Of the policy as it is now; the log-probs of what drew are the engine's."""
        module = cast("PolicyModule", module)
        now = self.world.policy(module.backbone)
        before = module.__dict__.get("_before", now) if self.behind else self.world.reference
        module.__dict__["_before"] = now
        self.write(module, before)
        drawn = self.draw(module)
        self.write(module, now)
        learned = [self.learn(module, each) for each in drawn.rollouts]
        return self.loss_of(module, Drawn(drawn.chance, learned))

    @torch.no_grad()
    def learn(self, module: PolicyModule, rollout: EvaluatedRollout) -> EvaluatedRollout:
        """What was drawn, as the policy of now evaluates it."""
        drawn = replace(rollout.completions, logprobs=rollout.old_logprobs)
        scored = replace(rollout, completions=drawn).to_stage(ScoredRollout)
        return module.estimated(module.evaluate(scored))


def off_policy_cases() -> list[Case]:
    """Gradients by token, then what can be held to an optimum although an earlier policy drew."""
    options: dict[str, Any] = {"kl": o.FixedKL(BETA), "sampling": Sampling(max_new_tokens=2)}
    far = replace(ValueLoss(), clip=None)
    plain = partial(PPOPolicyModule, **options)
    single: dict[str, Any] = {
        "PPO": plain,
        "PPO (terminal KL)": partial(plain, terminal_kl=True, entropy_coef=0.1, value_loss=far),
        "PPO (raw)": partial(plain, gae=GAE(gamma=0.9, lam=0.3, whiten=False)),
        "REINFORCE++": partial(ReinforcePPPolicyModule, **options),
    }
    grouped: dict[str, Any] = {
        "RLOO": RLOOPolicyModule,
        "GRPO": GRPOPolicyModule,
        "GSPO": GSPOPolicyModule,
        "DAPO": partial(DAPOPolicyModule, overlong_penalty=0.0),
        "CISPO": partial(CISPOPolicyModule, surrogate=o.WeightClipped(low=0.1, high=0.1)),
        "RLOO (dual clip)": partial(RLOOPolicyModule, surrogate=o.ClippedSurrogate(dual=1.5)),
    }
    warm = {"sampling": Sampling(max_new_tokens=2, temperature=0.7)}
    grouped["RLOO (temperature)"], more = RLOOPolicyModule, {"RLOO (temperature)": warm}
    world = tree()
    best = optimum(world)
    bases = [PolicyCase(name, TEXT, world, make, best, group=1) for name, make in single.items()]
    for name, kind in grouped.items():
        make = partial(kind, num_samples=2, **(options | more.get(name, {})))
        bases.append(PolicyCase(name, TEXT, world, make, best))
    return [*map(OffPolicyCase.of, bases), *_optimum_cases(options)]


def _optimum_cases(options: dict[str, Any]) -> list[Case]:
    deep, flat = tree(), bandit(3)
    ppo = partial(PPOPolicyModule, **options)
    rloo = partial(RLOOPolicyModule, num_samples=2, **options)
    wide = o.ClippedSurrogate(low=1.0, high=1e9)
    unclipped = partial(rloo, surrogate=wide, kl_loss=o.UnbiasedK3())

    def corrected(cap: float) -> MakeModule:
        correction = o.TruncatedImportance(cap)
        return partial(rloo, recompute_logprobs=True, importance_correction=correction)

    cut = deep.rewards - _PENALTY * (~deep.finished).double()
    penalized = targets.tilted(deep.reference, cut / BETA)
    refused = partial(rloo, missing_eos_penalty=_PENALTY)
    best, best_flat, text = optimum(deep), optimum(flat), "ref exp((r - penalty [cut])/beta)"
    ends, behind = partial(PolicyCase, training="either"), partial(CorrectedCase, behind=False)
    late, again = (partial(kind, training="descend") for kind in (CorrectedCase, ReuseCase))
    critic = partial(ReuseCriticCase, group=1, training="descend")
    of_reference = "RLOO (all of the reference, corrected)"
    return [
        EarlierCase("RLOO (k3, all of the reference)", PI_STAR, flat, unclipped, best_flat),
        ends("RLOO (cut completions)", text, deep, refused, penalized),
        late("RLOO (one step off)", PI_STAR, deep, corrected(2.0), best),
        behind(of_reference, PI_STAR, flat, corrected(1e9), best_flat),
        again("RLOO (four updates)", PI_STAR, deep, rloo, best),
        critic("PPO (four updates, lam=0.95)", PI_STAR, deep, ppo, best),
    ]
