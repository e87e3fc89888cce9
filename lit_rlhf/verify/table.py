"""The table of all methods: which cases there are, and running them."""

from collections.abc import Callable, Sequence
from functools import cache

from lit_rlhf.errors import ConfigurationError, near
from lit_rlhf.modules import RLHFModule
from lit_rlhf.verify.custom import custom_cases
from lit_rlhf.verify.groups import group_cases
from lit_rlhf.verify.off_policy import off_policy_cases
from lit_rlhf.verify.online import pair_cases
from lit_rlhf.verify.policy import policy_cases
from lit_rlhf.verify.preference import preference_cases
from lit_rlhf.verify.reward import reward_cases
from lit_rlhf.verify.runner import Case, VerifyRow, verify_case
from lit_rlhf.verify.variants import best_of_n_cases, distillation_cases, variant_cases


@cache
def all_cases() -> dict[str, Case]:
    """The cases by name: at least one for each method of the library."""
    cases: list[Case] = [
        *preference_cases(),
        *policy_cases(),
        *group_cases(),
        *variant_cases(),
        *distillation_cases(),
        *best_of_n_cases(),
        *off_policy_cases(),
        *pair_cases(),
        *reward_cases(),
    ]
    return {case.method: case for case in cases}


def verify(methods: Sequence[str] | None = None) -> list[VerifyRow]:
    """The table: all rows, or those of the methods named.

    Args:
        methods: Names of rows, or what stands before the parenthesis of several: "RLOO" is all of RLOO's.

    Raises:
        ConfigurationError: There is no such method.
    """
    cases = all_cases().values() if methods is None else cases_of(methods)
    return [verify_case(case) for case in cases]


def cases_of(methods: Sequence[str]) -> list[Case]:
    """The cases of the methods named; see `verify`."""
    cases = all_cases()
    chosen: list[Case] = []
    for method in methods:
        wanted = method.casefold()  # dpo is what the command is called
        found = [
            case
            for name, case in cases.items()
            if name.casefold() == wanted or name.casefold().startswith(f"{wanted} (")
        ]
        if not found:
            names = {each.casefold(): each for each in (name.partition(" (")[0] for name in cases)}
            hint = near(wanted, names, most=3, cutoff=0.5, form=names.__getitem__)
            raise ConfigurationError(
                f"There is no method {method!r} to verify.{hint} Without --methods all are run and named."
            )
        chosen += found
    return chosen


def verify_module(make_module: Callable[[], RLHFModule]) -> list[VerifyRow]:
    """The rows of a module of the user's own; see `custom_cases` for its data and what it is held to.

    Args:
        make_module: Makes the module, without a backbone, anew at each call.
    """
    return [verify_case(case) for case in custom_cases(make_module)]
