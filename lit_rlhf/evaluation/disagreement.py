"""Where reward models disagree: which pairs to ask people about next."""

from collections.abc import Sequence

import torch

from lit_rlhf.data import InvalidRowError
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.evaluation.comparisons import Comparison
from lit_rlhf.evaluation.measures import margin_deviation
from lit_rlhf.evaluation.scorers import ModelScorer
from lit_rlhf.types import Text


def disagreements(
    models: Sequence[ModelScorer], pairs: Sequence[tuple[Text, Text, Text]]
) -> list[float | None]:
    """How far the members of an ensemble disagree on each pair: the deviation of its margin, in units of the scores.

    Members are the heads of a model trained with `HeadEnsemble`, or models of their own, such as those of several
    seeds, which must be on one scale.

    Args:
        models: One of several heads, or several.
        pairs: Prompt, an answer, and another.

    Returns:
        None of a pair that one of them can't score, as it is longer than it reads.

    Raises:
        ConfigurationError: Only one member, with whom nobody disagrees.
    """
    if sum(len(model.heads) for model in models) < 2:
        raise ConfigurationError(
            "One reward model has nobody to disagree with: give the checkpoint of one that was trained with "
            "HeadEnsemble (an export holds the mean of its members alone), or two and more models."
        )
    comparisons = [Comparison(prompt, (a, b), (0.0, 0.0)) for prompt, a, b in pairs]
    found: list[float | None] = []
    for scored in zip(*(model.score(comparisons) for model in models), strict=True):
        members = [
            each.total[None] if each.members is None else each.members
            for each in scored
            if not isinstance(each, InvalidRowError)
        ]
        known = len(members) == len(scored)
        found.append(float(margin_deviation(torch.cat(members))) if known else None)
    return found
