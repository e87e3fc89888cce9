"""Who says which of two completions is better, given their scores: parts of online preference methods."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from lit_rlhf.functional.rankings import preference_probability
from lit_rlhf.options import check_option

Pairs = Float[Tensor, " pairs"]


class PreferenceOracle(ABC):
    """Labels pairs of completions by their scores."""

    @abstractmethod
    def __call__(self, margins: Pairs, uniforms: Pairs) -> Pairs:
        """Labels (P,) in [0, 1]: 1 prefers the first completion of the pair, 0 the second.

        Args:
            margins: (P,) score of the first minus score of the second.
            uniforms: (P,) numbers in [0, 1), for oracles that draw.
        """


class SoftLabels(PreferenceOracle):
    r"""The probability $\sigma(\Delta r/T)$ itself: what many raters say on average, without their noise.

    Args:
        temperature: T, in units of reward, above 0. 1 takes a Bradley-Terry reward model at its word; larger makes
            labels less sure, which acts as a smaller reward.

    Raises:
        ConfigurationError: The temperature isn't above 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        check_option(temperature > 0, self, "temperature", temperature, "above 0")
        self.temperature = temperature

    def __call__(self, margins: Pairs, uniforms: Pairs) -> Pairs:
        """The probabilities; nothing is drawn."""
        return preference_probability(margins, self.temperature)


class BernoulliLabels(SoftLabels):
    r"""0 or 1, drawn with probability $\sigma(\Delta r/T)$: one rater a pair, noisier than `SoftLabels`.

    Args:
        temperature: As in `SoftLabels`.
    """

    def __call__(self, margins: Pairs, uniforms: Pairs) -> Pairs:
        """The draws."""
        probabilities = super().__call__(margins, uniforms)
        return (uniforms < probabilities).to(probabilities.dtype)


class HardLabels(PreferenceOracle):
    """1 for the higher score, 0 for the lower, 1/2 in a tie, as other libraries label by default.

    How much better a completion is no longer counts, so log-ratios grow without bound: the optimum of DPO with such
    labels is all on the best completion, whatever beta is.
    """

    def __call__(self, margins: Pairs, uniforms: Pairs) -> Pairs:
        """The signs."""
        return 0.5 * (1 + margins.sign())
