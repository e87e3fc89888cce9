"""Who is awaited, from what each process says; `tests/invariants/test_watchdog.py` stops real ones."""

from typing import Any

import pytest

from lit_rlhf.callbacks import Watchdog
from lit_rlhf.callbacks.watchdog import Beat, Standing
from lit_rlhf.errors import ConfigurationError
from tests.unit.callbacks.standins import Data, Module, quiet_trainer

LIMIT, SILENCE = 100.0, 30.0


def beat(number: int, begun: int, **more: Any) -> Beat:
    where = f"rollout of iteration {begun}"
    return Beat(number, begun, where, "here", 1000 + number, "1", **more)


def standing(looks: int, *ranks: Any) -> Standing:
    """After looks ten seconds apart at ranks that are functions of the look's number."""
    found = Standing(len(ranks))
    for look in range(looks):
        found.see([rank(look) for rank in ranks], 10.0)
    return found


def waiting(look: int) -> Beat:
    return beat(look, 7)


def busy(look: int) -> Beat:
    return beat(look, 6)


def stopped(look: int) -> Beat:
    return beat(0, 6)


def going_on(look: int) -> Beat:
    return beat(look, 7 + look)


def absent(look: int) -> None:
    return None


def raised(look: int) -> Beat:
    return beat(0, 6, left="ended with KeyError: 'x'")


@pytest.mark.parametrize(
    ("ranks", "looks", "awaited"),
    [
        ((waiting, stopped), 3, []),
        ((waiting, stopped), 4, [1]),
        ((waiting, waiting, stopped, busy), 4, [2]),
        ((waiting, busy), 10, []),
        ((waiting, busy), 11, [1]),
        ((busy, busy, waiting), 11, [0, 1]),
        ((waiting, waiting), 1000, []),  # a rollout of hours, in which nobody waits
        ((stopped, busy), 1000, []),  # nobody waits yet
        ((going_on, busy), 1000, []),  # of other groups of processes: it doesn't wait
        ((waiting, absent), 10, []),  # loads its weights
        ((waiting, absent), 11, [1]),
        ((waiting, raised), 4, [1]),
    ],
)
def test_who_is_awaited(ranks: Any, looks: int, awaited: list[int]) -> None:
    assert standing(looks, *ranks).awaited(LIMIT, SILENCE) == awaited


def test_it_says_where_each_stands() -> None:
    said = standing(6, waiting, stopped, absent, raised).describe()
    assert said == (
        "  rank 0: rollout of iteration 7, collective 7 begun 50 s ago (process 1005 on here)\n"
        "  rank 1: rollout of iteration 6, collective 6 begun 50 s ago (process 1000 on here; says nothing for 50 s)\n"
        "  rank 2: has not begun to train\n"
        "  rank 3: rollout of iteration 6, collective 6 begun 50 s ago (process 1000 on here; ended with KeyError: 'x')"
    )


@pytest.mark.parametrize("options", [{"limit": 0.0}, {"silence": -1.0}])
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Watchdog.*{next(iter(options))}"):
        Watchdog(**options)


def test_one_process_is_left_alone(tmp_path: Any) -> None:
    watchdog = Watchdog(limit=1e-6, silence=1e-6)
    quiet_trainer(tmp_path, [watchdog]).fit(Module(True), datamodule=Data())
    assert watchdog._watch is None
