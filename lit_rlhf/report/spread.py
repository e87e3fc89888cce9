"""What runs of several seeds came to: each by itself, their mean, and how far it can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lit_rlhf.report.curves import Group, t_interval

TOLD = (
    ("train/objective/scores", "reward"),
    ("val/objective/scores", "reward, validation"),
    ("train/rewards/gold/mean", "gold reward"),
    ("train/objective/kl", "KL, nats per completion"),
    ("train/completions/mean_length", "tokens per completion"),
    ("train/accuracy", "accuracy"),
    ("val/accuracy", "accuracy, validation"),
    ("train/rewards/accuracies", "accuracy of implicit rewards"),
    ("val/rewards/accuracies", "accuracy of implicit rewards, validation"),
    ("train/loss", "loss"),
    ("val/loss", "loss, validation"),
)
"""The metrics that a page begins with, and what they are called there."""


@dataclass(frozen=True)
class Spread:
    """A metric at the end of the runs of a group.

    Attributes:
        label: What the metric is called.
        ends: Of each run, the mean over the last tenth of its curve; None where it has none.
    """

    label: str
    ends: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        """Those that there are."""
        return [end for end in self.ends if end is not None]

    def cells(self) -> list[float | None]:
        """Mean, half the width of its 95 % interval (of three runs or more), standard deviation (n - 1), each run's."""
        deviation = stdev(self.known) if len(self.known) > 1 else None
        return [fmean(self.known), t_interval(self.known), deviation, *self.ends]


def spreads(group: Group) -> list[Spread]:
    """Of each metric that a page begins with and some run of the group has."""
    found = [Spread(label, group.ends(metric)) for metric, label in TOLD]
    return [spread for spread in found if spread.known]


def columns(group: Group) -> list[str]:
    """The heads over `Spread.cells`."""
    return ["mean", "± (95 %)", "std", *(run.name for run in group.runs)]
