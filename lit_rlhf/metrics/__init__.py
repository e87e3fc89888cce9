"""Metrics for reward and value models.

Those that are a `torchmetrics.Metric` accumulate over batches and ranks; plain functions take the scores of a whole
data set, and say how sure their numbers are.
"""

from lit_rlhf.metrics.intervals import (
    Estimate as Estimate,
    bootstrap_mean as bootstrap_mean,
    mcnemar_test as mcnemar_test,
    wilson_interval as wilson_interval,
    wilson_mean as wilson_mean,
)
from lit_rlhf.metrics.pairs import (
    Bias as Bias,
    Ceiling as Ceiling,
    agreement as agreement,
    best_temperature as best_temperature,
    brier_score as brier_score,
    feature_bias as feature_bias,
    rater_ceiling as rater_ceiling,
)
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
from lit_rlhf.metrics.selection import (
    best_of_credit as best_of_credit,
    best_of_n_curve as best_of_n_curve,
)
