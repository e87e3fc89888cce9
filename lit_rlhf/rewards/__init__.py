"""Scoring completions: trained reward models, functions, rules, and what is made of them."""

from lit_rlhf.rewards.base import Reward as Reward
from lit_rlhf.rewards.combine import (
    ConstrainedReward as ConstrainedReward,
    Ensemble as Ensemble,
    EnsembleMean as EnsembleMean,
    EnsembleUncertainty as EnsembleUncertainty,
    EnsembleWorst as EnsembleWorst,
    MonitoredReward as MonitoredReward,
    NormalizedReward as NormalizedReward,
    WeightedSum as WeightedSum,
)
from lit_rlhf.rewards.functions import FunctionReward as FunctionReward
from lit_rlhf.rewards.judge import JudgeReward as JudgeReward
from lit_rlhf.rewards.model import ModelReward as ModelReward
from lit_rlhf.rewards.remote import HTTPReward as HTTPReward
from lit_rlhf.rewards.rules import (
    ExactAnswerReward as ExactAnswerReward,
    LengthReward as LengthReward,
    LexiconReward as LexiconReward,
    NoReward as NoReward,
    PatternReward as PatternReward,
    TextReward as TextReward,
)
