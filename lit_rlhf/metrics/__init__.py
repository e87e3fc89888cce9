"""Metrics for reward and value models as `torchmetrics.Metric`: they accumulate over batches and ranks."""

from lit_rlhf.metrics.preference import CalibrationError, PreferenceAccuracy, RewardMargin
from lit_rlhf.metrics.regression import ExplainedVariance, LengthCorrelation, MeanAndStd

__all__ = [
    "CalibrationError",
    "ExplainedVariance",
    "LengthCorrelation",
    "MeanAndStd",
    "PreferenceAccuracy",
    "RewardMargin",
]
