"""Feedback from people: pairs of answers, a store of votes on them, and preference data made of these.

The page where people vote is `lit_rlhf.feedback.web`, apart because it needs the extra `annotate`.
"""

from lit_rlhf.feedback.pairs import Candidates, Pair, read_pairs
from lit_rlhf.feedback.preferences import (
    Exported,
    Progress,
    agreement,
    export_preferences,
    progress,
)
from lit_rlhf.feedback.store import LabelStore, Verdict, Vote

__all__ = [
    "Candidates",
    "Exported",
    "LabelStore",
    "Pair",
    "Progress",
    "Verdict",
    "Vote",
    "agreement",
    "export_preferences",
    "progress",
    "read_pairs",
]
