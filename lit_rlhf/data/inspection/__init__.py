"""Looking through data before training on it; needs neither a Trainer nor the command line.

Each part looks at one record after the other and then sums up: `lengths`, `labels`, `doubles` (repetitions and
contradictions), `near` (near-duplicates), `leakage`, `endings` (special tokens, templates, endings).
"""

from lit_rlhf.data.inspection.doubles import DoubleFacts as DoubleFacts, NearFacts as NearFacts
from lit_rlhf.data.inspection.endings import TextFacts as TextFacts, TokenFacts as TokenFacts
from lit_rlhf.data.inspection.findings import Finding as Finding, findings as findings
from lit_rlhf.data.inspection.inspecting import (
    Inspection as Inspection,
    Shown as Shown,
    SplitFacts as SplitFacts,
    inspect as inspect,
)
from lit_rlhf.data.inspection.labels import Agreement as Agreement, LabelFacts as LabelFacts
from lit_rlhf.data.inspection.leakage import Leak as Leak, SharedRun as SharedRun
from lit_rlhf.data.inspection.lengths import (
    LengthFacts as LengthFacts,
    OriginFacts as OriginFacts,
    PairFacts as PairFacts,
    Spread as Spread,
    quantiles as quantiles,
)
