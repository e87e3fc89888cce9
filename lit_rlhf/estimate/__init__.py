"""Will it fit, and how long will it take: answered from shapes, before any weight is read."""

from lit_rlhf.estimate.asking import estimate as estimate
from lit_rlhf.estimate.cards import (
    CARDS as CARDS,
    LINKS as LINKS,
    Card as Card,
    bandwidth_of as bandwidth_of,
    card_of as card_of,
)
from lit_rlhf.estimate.estimating import Estimate as Estimate, Plan as Plan, run_plan as run_plan
from lit_rlhf.estimate.processes import Processes as Processes
from lit_rlhf.estimate.table import table as table
from lit_rlhf.estimate.workload import Workload as Workload
