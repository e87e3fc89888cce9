"""Whether a reward model can be trusted: its scores against raters, from all sides.

- `read_comparisons` reads pairs, rankings, or lists of good and bad answers, of any format of the library.
- A `Scorer` scores their answers: `ModelScorer` is a reward model, `JudgeScorer` a judge; your own has one method.
- `evaluate_reward` makes a `RewardEvaluation` of both; `compare_rewards` says what tells two of them apart.
- `disagreements` says of pairs that nobody has judged yet how unsure an ensemble is: which to ask people about next.

The numbers are functions of `lit_rlhf.metrics`, which take tensors and are of use by themselves.
"""

from lit_rlhf.evaluation.compare import Difference as Difference, compare_rewards as compare_rewards
from lit_rlhf.evaluation.comparisons import (
    Comparison as Comparison,
    Comparisons as Comparisons,
    read_comparisons as read_comparisons,
)
from lit_rlhf.evaluation.evaluate import (
    RewardEvaluation as RewardEvaluation,
    ScoredComparison as ScoredComparison,
    evaluate_reward as evaluate_reward,
)
from lit_rlhf.evaluation.judges import JudgeScorer as JudgeScorer
from lit_rlhf.evaluation.measures import (
    BestOf as BestOf,
    Calibration as Calibration,
    Doubt as Doubt,
    Subset as Subset,
)
from lit_rlhf.evaluation.rewardbench import (
    section_scores as section_scores,
    ties_score as ties_score,
)
from lit_rlhf.evaluation.robustness import Turned as Turned
from lit_rlhf.evaluation.scorers import (
    ModelScorer as ModelScorer,
    Scored as Scored,
    Scorer as Scorer,
    disagreements as disagreements,
)
from lit_rlhf.evaluation.temperature import fitted_temperature as fitted_temperature
