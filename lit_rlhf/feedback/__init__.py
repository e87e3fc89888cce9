"""Feedback from people: pairs of answers, a store of votes on them, and preference data made of these.

The page where people vote is `lit_rlhf.feedback.web`, apart because it needs the extra `annotate`.
"""

from lit_rlhf.feedback.pairs import Candidates as Candidates, Pair as Pair, read_pairs as read_pairs
from lit_rlhf.feedback.preferences import (
    Exported as Exported,
    Progress as Progress,
    agreement as agreement,
    export_preferences as export_preferences,
    progress as progress,
)
from lit_rlhf.feedback.store import LabelStore as LabelStore, Verdict as Verdict, Vote as Vote
