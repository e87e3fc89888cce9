"""Feedback from people and judges: pairs of answers, votes and verdicts, and preference data from these.

The page where people vote is `lit_rlhf.feedback.web`, apart because it needs the extra `annotate`.
"""

from lit_rlhf.feedback.labels import (
    JudgedPair as JudgedPair,
    LabelledPair as LabelledPair,
    Labelling as Labelling,
    label_pairs as label_pairs,
    read_labelled_pairs as read_labelled_pairs,
    write_preferences as write_preferences,
)
from lit_rlhf.feedback.pairs import Candidates as Candidates, Pair as Pair, read_pairs as read_pairs
from lit_rlhf.feedback.preferences import (
    Exported as Exported,
    Progress as Progress,
    agreement as agreement,
    export_preferences as export_preferences,
    progress as progress,
)
from lit_rlhf.feedback.store import LabelStore as LabelStore, Verdict as Verdict, Vote as Vote
