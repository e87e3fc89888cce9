"""Every method against the optimum that it claims, by exact expectations in the tabular world.

`verify()` gives the table; each row runs a method through its module's own code on all the data there could be.
"""

from lit_rlhf.verify.policy import PolicyCase as PolicyCase
from lit_rlhf.verify.preference import PreferenceCase as PreferenceCase
from lit_rlhf.verify.reward import RewardCase as RewardCase
from lit_rlhf.verify.runner import Case as Case, VerifyRow as VerifyRow, verify_case as verify_case
from lit_rlhf.verify.table import (
    all_cases as all_cases,
    cases_of as cases_of,
    verify as verify,
    verify_module as verify_module,
)
