"""Whether tokens were drawn from the policy's distribution, each independently of all others."""

import torch
from torch import Tensor

from lit_rlhf.models import Backbone, evaluating
from lit_rlhf.rollout import RolloutEngine, Sampling
from lit_rlhf.seeding import sample_seeds
from tests.reference.generations import LENGTHS, make_prompts, make_request


def draw_scores(logits: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Normal scores of draws: independent standard normal numbers if tokens are drawn from their logits.

    Tokens are ordered by probability and each takes its share of the interval from 0 to 1; a score is the normal
    quantile of a place taken at random within the share of the token that was drawn. Below 0 are likely tokens.

    Args:
        logits: (..., V) of the distributions.
        tokens: (...) what was drawn.
        generator: For the place within a token's share.

    Returns:
        (...) in float64.
    """
    probs = logits.double().softmax(-1)
    own = probs.gather(-1, tokens[..., None])
    place = torch.rand(own.shape, generator=generator, dtype=torch.float64)
    likelier = (probs * (probs > own)).sum(-1, keepdim=True)
    # Tokens that are equally likely share theirs.
    level = likelier + place * (probs * (probs == own)).sum(-1, keepdim=True)
    return torch.special.ndtri(level[..., 0].clamp(1e-12, 1 - 1e-12))


def dependences(scores: Tensor, mask: Tensor) -> dict[str, float]:
    """How far draws are from independent ones, as numbers that are about standard normal when they are.

    Args:
        scores: (prompts, samples, steps), see `draw_scores`.
        mask: (prompts, samples, steps) whether there was a draw; may depend on earlier ones.

    Returns:
        `mean`: of all draws; above 0 they are less likely than they should be. The others are above 0 where draws go
        together and below 0 where they avoid each other: those of a prompt's `samples` in one step, those of several
        `prompts` by the same number of sample in one step, and those of one completion's `steps`.
    """
    scores = scores * mask
    found = {"mean": float(scores.sum() / mask.sum().sqrt())}
    for name, dim in (("prompts", 0), ("samples", 1), ("steps", 2)):
        excess = scores.sum(dim).square() - scores.square().sum(dim)
        count = mask.sum(dim)
        found[name] = float(excess.sum() / (2 * count * (count - 1)).sum().sqrt())
    return found


@torch.no_grad()
def dependences_of(
    engine: RolloutEngine,
    backbone: Backbone,
    *,
    samples: int,
    steps: int,
    iteration: int = 0,
    **options: str,
) -> dict[str, float]:
    """`dependences` of an engine's draws, with seeds as a policy makes them."""
    seeds = sample_seeds(0, iteration, "rollout", torch.arange(len(LENGTHS) * samples))
    request = make_request(Sampling(max_new_tokens=steps), samples, seeds=seeds, **options)
    found = engine.generate(backbone, request)
    tokens, mask = (x.unflatten(0, (-1, samples)) for x in (found.tokens, found.mask))
    generator, scores = torch.Generator().manual_seed(0), []
    with evaluating(backbone), backbone.use_role(request.role):
        for prompt, length, own in zip(make_prompts()[0], LENGTHS, tokens, strict=True):
            ids = torch.cat([prompt[:length].expand(samples, -1), own], dim=1)
            logits = backbone.model(input_ids=ids).logits[:, length - 1 : -1]
            scores.append(draw_scores(logits, own, generator))
    return dependences(torch.stack(scores), mask)
