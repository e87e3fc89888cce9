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
        DataError: The scores claim no probabilities, or no temperature fits best: all pairs are in order, all margins
            are 0, or they are as large where raters disagree. Or there is a single comparison, which fits anything.
    """
    own, name = found.calibration, found.data.source
    if own is None:
        raise DataError(f"The scores of {found.model} claim no probabilities to be fitted.")
    margins = found.pairs.margins
    size = float(margins.double().abs().mean())
    if len(found.scored) == 1:
        why = "they are of one comparison"
    elif size == 0:
        why = "both answers of each have the same score"
    elif own.temperature < 2e-3 * size:
        why = "all of them are in order, as far as scores tell their answers apart"
    elif own.temperature > 500 * size:
        why = (
            "all told, its margins are no larger where raters agree with it than where they don't: it tells no better "
            "ones from worse"
        )
    else:
        why = ""
    if why:
        raise DataError(
            f"No temperature fits the {len(margins)} pairs of {name} best, for {why}. Give more pairs, "
            "which the model has not been trained on."
        )
    items = [one.comparison for one in found.scored]
    data = f"{len(margins)} pairs of {PurePath(name).name}"
    return Temperature(own.temperature, data, sketch_pairs(items))
