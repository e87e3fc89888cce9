"""Collect, judge, train, and again: rounds of the library's own commands, resumable at any point.

A `Method` says which steps a round has, each a command of `lit-rlhf` with its options in a file; `Rounds` runs those
that aren't done yet. Nothing is trained here: that is `lit-rlhf fit`.
"""

from lit_rlhf.rounds.commands import (
    InProcess as InProcess,
    Runner as Runner,
    Subprocesses as Subprocesses,
)
from lit_rlhf.rounds.evaluation import Evaluation as Evaluation, Stop as Stop
from lit_rlhf.rounds.feedback import (
    Feedback as Feedback,
    JudgeFeedback as JudgeFeedback,
    PeopleFeedback as PeopleFeedback,
    RevisionFeedback as RevisionFeedback,
    RewardFeedback as RewardFeedback,
)
from lit_rlhf.rounds.loop import Rounds as Rounds
from lit_rlhf.rounds.methods import (
    IterativeDPO as IterativeDPO,
    Method as Method,
    RejectionSampling as RejectionSampling,
    RewardRefresh as RewardRefresh,
    SelfPlay as SelfPlay,
)
from lit_rlhf.rounds.steps import Round as Round, Step as Step
from lit_rlhf.rounds.training import Training as Training
