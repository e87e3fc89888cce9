"""The temperature by which the sigmoid of a difference of scores becomes a probability."""

from pathlib import PurePath

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.comparisons import sketch_pairs
from lit_rlhf.evaluation.evaluate import RewardEvaluation
from lit_rlhf.models.cards import Temperature


def fitted_temperature(found: RewardEvaluation) -> Temperature:
    """The temperature that fits the pairs of an evaluation best, to export a reward model with.

    Args:
        found: Of the model as it was trained, on pairs that it has not seen.

    Raises:
        DataError: The scores claim no probabilities, or no temperature fits best: all pairs are in order, or half or
            more are not. Or there is a single comparison, which fits anything.
    """
    own, name = found.calibration, found.data.source
    if own is None:
        raise DataError(f"The scores of {found.model} claim no probabilities to be fitted.")
    alone = len(found.scored) == 1
    if alone or not 2e-3 < own.temperature < 500:
        way = "it tells no better ones from worse"
        if alone:
            way = "they are of one comparison"
        elif own.temperature < 1:
            way = "all of them are in order"
        raise DataError(
            f"No temperature fits the {len(found.pairs.margins)} pairs of {name} best, for {way}. Give more pairs, "
            "which the model has not been trained on."
        )
    items = [one.comparison for one in found.scored]
    data = f"{len(found.pairs.margins)} pairs of {PurePath(name).name}"
    return Temperature(own.temperature, data, sketch_pairs(items))
