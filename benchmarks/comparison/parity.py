"""Whether both sides did the same work.

Each check is a dictionary for the report, whose `ok` says how it went; None: it can't tell.
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

Check = dict[str, Any]


def curves(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> Check:
    """Losses step by step: |ours - theirs| may be `tolerance` times the larger of 1 and the peer's."""
    same = len(ours) == len(theirs) and len(ours) > 0
    errors = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=False)]
    worst = max((error if math.isfinite(error) else math.inf for error in errors), default=math.inf)
    check = {"kind": "loss curves", "tolerance": tolerance, "worst": worst}
    return check | _both(ours, theirs) | {"ok": same and worst <= tolerance}


def rewards(ours: Sequence[float], theirs: Sequence[float], least_steps: int) -> Check:
    """Mean reward over the second half of the steps: ours may lie below the peer's by its deviation over those steps.

    With fewer than `least_steps` in that half, `ok` is None: the deviation of so few says nothing. Curves of different
    lengths, or of none, are no agreement.
    """
    late, peer_late = (list(curve)[len(curve) // 2 :] for curve in (ours, theirs))
    same = len(ours) == len(theirs) > 0
    found = {"kind": "rewards", **_both(ours, theirs)}
    if not same or len(late) < least_steps:
        return found | {"ok": None if same else False}
    spread = pstdev(peer_late)
    values = {"our_mean": fmean(late), "peer_mean": fmean(peer_late), "peer_deviation": spread}
    return found | values | {"ok": values["our_mean"] >= values["peer_mean"] - spread}


def _both(ours: Sequence[float], theirs: Sequence[float]) -> Check:
    return {"ours": list(ours), "peer": list(theirs)}


def generations(
    our_regret: float,
    their_regret: float,
    our_lengths: Sequence[float],
    their_lengths: Sequence[float],
    most_regret: float,
    most_errors: float,
) -> Check:
    """Regret of greedy completions, in nats a token (`regret.py`), and mean lengths of sampled ones."""
    found = {"our_regret": our_regret, "peer_regret": their_regret}
    found |= {"our_mean_length": fmean(our_lengths), "peer_mean_length": fmean(their_lengths)}
    error = math.hypot(*(pstdev(each) / len(each) ** 0.5 for each in (our_lengths, their_lengths)))
    difference = abs(found["our_mean_length"] - found["peer_mean_length"])
    small = our_regret <= most_regret and their_regret <= most_regret
    ok = small and difference <= most_errors * error
    limits = {"length_error": error, "most_regret": most_regret, "most_errors": most_errors}
    return {"kind": "generations", "ok": ok, **found, **limits}
