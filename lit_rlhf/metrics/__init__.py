"""Metrics for reward and value models as `torchmetrics.Metric`: they accumulate over batches and ranks."""

from lit_rlhf.metrics.preference import (
    CalibrationError as CalibrationError,
    PreferenceAccuracy as PreferenceAccuracy,
    RewardMargin as RewardMargin,
)
from lit_rlhf.metrics.regression import (
    ExplainedVariance as ExplainedVariance,
    LengthCorrelation as LengthCorrelation,
    MeanAndStd as MeanAndStd,
)
