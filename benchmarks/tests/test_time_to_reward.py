"""benchmarks/time_to_reward on curves made up here: who reached what, when, and what the tables say of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.time_to_reward.__main__ import racing
from benchmarks.time_to_reward.judging import coarse_first
from benchmarks.time_to_reward.race import Pace, Race, adapters
from benchmarks.time_to_reward.report import (
    Curve,
    Key,
    Point,
    at,
    best,
    draw,
    reach,
    read,
    report,
    smooth,
    tuned,
)


def curve(pace: float, golds: list[float], kl: float = 1.0) -> Curve:
    """A policy every `pace` CPU seconds, each of them twice by the wall; KL rises by `kl` each time."""
    return [
        Point(2 * i, 2 * i * pace, i * pace, gold, 0.03, i * kl, 0.1)
        for i, gold in enumerate(golds)
    ]


def test_a_score_counts_at_no_more_kl() -> None:
    goal = Point(0, 0.0, 0.0, 0.4, 0.03, 2.0, 0.1)
    ours = curve(1.0, [0.2, 0.3, 0.4, 0.5])
    assert reach(ours, goal) == ours[2]
    # 2.4 is more than 2 + 2 * 0.14
    assert reach(curve(1.0, [0.2, 0.3, 0.4, 0.5], kl=1.2), goal) is None
    assert reach(curve(1.0, [0.2, 0.3, 0.4, 0.5], kl=1.1), goal) is not None


def test_scores_at_a_time_lie_on_the_line() -> None:
    ours = curve(10.0, [0.2, 0.3, 0.5])
    assert [at(ours, seconds) for seconds in (0.0, 10.0, 15.0)] == pytest.approx([0.2, 0.3, 0.4])


def test_smoothing_leaves_the_start_and_takes_neighbours() -> None:
    assert [point.gold for point in smooth(curve(1.0, [0.2, 0.3, 0.6, 0.3]))] == pytest.approx(
        [0.2, 0.45, 0.4, 0.45]
    )
    sparse = [
        replace(point, iteration=3 * point.iteration) for point in curve(1.0, [0.2, 0.3, 0.6])
    ]
    assert smooth(sparse) == sparse
    assert best(curve(1.0, [0.9, 0.3, 0.6])).gold == 0.6


def test_judging_begins_with_the_coarsest() -> None:
    files = [Path(f"{run}/{i:04}.pt") for run in ("a", "b") for i in (2, 4, 6, 8)]
    assert [str(file)[:6] for file in coarse_first(files)] == [
        *("a/0008", "b/0008", "a/0004", "b/0004", "a/0002", "a/0006", "b/0002", "b/0006")
    ]


CURVES: dict[Key, Curve] = {
    ("grpo", 3e-4, 0, "ours"): curve(1.0, [0.2, 0.3, 0.4, 0.5]),
    ("grpo", 1e-3, 0, "ours"): curve(1.0, [0.2, 0.1, 0.1, 0.1]),
    ("grpo", 3e-4, 1, "ours"): curve(1.0, [0.2, 0.3, 0.4, 0.5]),
    ("grpo", 3e-4, 0, "theirs"): curve(8.0, [0.2, 0.3, 0.4]),
    ("grpo", 3e-4, 1, "theirs"): curve(4.0, [0.2, 0.3, 0.4]),
}


def test_the_rate_is_the_first_seeds_best() -> None:
    assert tuned(CURVES, "grpo", "ours") == {
        seed: smooth(CURVES["grpo", 3e-4, seed, "ours"]) for seed in (0, 1)
    }
    assert list(racing(["grpo", "ppo"], [1e-3], [2], CURVES)) == [
        ("grpo", 3e-4, 2, "ours"),
        ("grpo", 3e-4, 2, "theirs"),
        ("ppo", 1e-3, 2, "ours"),  # nothing judged yet: the first of the grid
        ("ppo", 1e-3, 2, "theirs"),
    ]
    better = CURVES | {("grpo", 1e-3, 0, "theirs"): curve(8.0, [0.2, 0.5, 0.5])}
    assert [rate for _, rate, _, _ in racing(["grpo"], [3e-4], [2], better)] == [3e-4, 1e-3]


def test_tables_tell_who_was_sooner_and_what_was_not_run(tmp_path: Path) -> None:
    text = report(CURVES, "A CPU", dict.fromkeys([*CURVES, ("ppo", 3e-4, 0, "ours")], 4))
    # smoothed, their best is 0.35 at 8 and 4 seconds, and so is our first policy, at 1
    assert "| GRPO | 0 | 0.350 | 1.50 | 8 | 1 | 1.50 | **8.0** | 8.0 | 5 |" in text
    assert "| GRPO | all |  |  |  | 2 of 2 reached |  | 5.7 (4.0 to 8.0) |" in text
    assert "6 runs were planned; not run: 1 of PPO." in text
    assert "| GRPO | TRL 1.16 | 0.0003 | 1 | 4 of 4 | 2.00 | 4.00 | 0.350 ± 0.030 |" in text
    draw(CURVES, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text().count("<svg") == 1


def test_adapters_are_kept_with_the_seconds_of_training_alone(tmp_path: Path) -> None:
    race = Race("grpo", "", "", 1, steps=3, out=str(tmp_path / "adapters" / "run-ours"), every=2)
    weights = [
        (f"any.prefix.layers.0.q_proj.{part}.policy.weight", torch.nn.Parameter(torch.ones(2)))
        for part in ("lora_A", "lora_B")
    ]
    pace = Pace(race, lambda: iter(weights))
    pace.start()
    for _ in range(3):
        pace.tick()
    assert [mark["iteration"] for mark in pace.marks] == [2, 3]
    kept = torch.load(tmp_path / "adapters" / "run-ours" / "0002.pt")
    assert (
        kept.keys()
        == adapters(weights).keys()
        == {"layers.0.q_proj.lora_A", "layers.0.q_proj.lora_B"}
    )
    assert read(tmp_path) == {}  # nothing judged yet
    judged = dict.fromkeys(("gold", "gold_stderr", "kl", "kl_stderr"), 0.5)
    (tmp_path / "judged.json").write_text(json.dumps({"initial": judged}))
    (tmp_path / "adapters" / "run-ours" / "judged.json").write_text(
        json.dumps({"0002.pt": judged})  # the second isn't judged yet
    )
    ((key, points),) = read(tmp_path).items()
    assert key == ("grpo", race.lr, 0, "ours")
    assert [point.iteration for point in points] == [0, 2]
