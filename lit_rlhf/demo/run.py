"""The demo from start to end."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.report import write_report
from lit_rlhf.demo.results import examples, judge, policy_summary, reward_summary
from lit_rlhf.demo.stages import PolicyResult, Stages
from lit_rlhf.demo.world import World
from lit_rlhf.files import refuse_foreign, write_text
from lit_rlhf.internals.lightning import silence_noise


def run_demo(
    output: Path, seed: int = 0, config: DemoConfig | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Run SFT, reward model and PPO on the small world of reviews, and report what came out.

    Writes `summary.json`, `report.html` (one file), each stage's metrics and export, and PPO's samples.

    Args:
        output: Directory, new or of an earlier demo, whose `sft`, `reward` and `ppo` are replaced.
        seed: Of data, weights and rollouts.
        config: Sizes and rates; default `DemoConfig()`.
        console: Where progress and results are shown; default: standard output.

    Returns:
        What `summary.json` holds.

    Raises:
        FileError: The directory holds something else, or can't be written.
    """
    config, console = config or DemoConfig(), console or Console()
    start = time.perf_counter()
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, title: str) -> Iterator[None]:
        console.rule(f"[bold]{title}", align="left")
        begun = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - begun

    settings = {"seed": seed, "config": asdict(config)}
    refuse_foreign(output, "summary.json", "The demo")
    write_text(output / "summary.json", json.dumps(settings, indent=2) + "\n")
    for name in ("sft", "reward", "ppo"):
        shutil.rmtree(output / name, ignore_errors=True)
    with _quiet_lightning():
        stages = Stages(output, config, seed)
        with stage("sft", "1/3  Supervised fine-tuning: imitate what people write"):
            stages.supervised()
        with stage("reward", "2/3  Reward model: learn from noisy choices of raters"):
            reward = stages.reward()
        with stage("ppo", "3/3  PPO: please the reward model, stay near the initial policy"):
            policy = stages.policy()
    summary: dict[str, Any] = {
        "seed": seed,
        "reward_model": reward_summary(reward),
        "ppo": policy_summary(policy, config.world.world),
        "seconds": time.perf_counter() - start,
        "stage_seconds": seconds,
    }
    report = write_report(output / "report.html", summary, reward, policy, config)
    write_text(output / "summary.json", json.dumps(summary | settings, indent=2) + "\n")
    _show(console, summary, policy, config)
    console.print(f"\nReport: {report}\nNumbers: {output / 'summary.json'}", highlight=False)
    return summary


def _show(
    console: Console, summary: dict[str, Any], policy: PolicyResult, config: DemoConfig
) -> None:
    reward, ppo = summary["reward_model"], summary["ppo"]
    table = Table(
        title="What came out", title_justify="left", show_header=True, header_style="bold"
    )
    for column in ("", "before", "after", "best possible"):
        table.add_column(column, justify="right" if column else "left")
    accuracies = (0.5, reward["accuracy"], reward["bayes_accuracy"])
    golds = (ppo["gold_before"], ppo["gold_after"], ppo["gold_max"])
    rows: dict[str, tuple[str, tuple[float | None, ...]]] = {
        "reward-model accuracy on held-out choices": (".3f", accuracies),
        "reward-model score of the policy": (".2f", (ppo["reward_before"], ppo["reward_after"])),
        "true utility of the policy (gold)": (".2f", golds),
        "share of the gap closed": (".0%", (None, ppo["gap_closed"])),
        "KL to the initial policy, nats": (".2f", (0.0, ppo["kl"])),
        "distinct-2": (".3f", (ppo["distinct_2_before"], ppo["distinct_2_after"])),
    }
    for label, (form, values) in rows.items():
        table.add_row(label, *("" if value is None else f"{value:{form}}" for value in values))
    console.print(table)
    console.print(_sample_table(policy, config.world.world))
    took = ", ".join(
        f"{name} {seconds:.0f} s" for name, seconds in summary["stage_seconds"].items()
    )
    console.print(f"{summary['seconds']:.0f} s in all ({took})", highlight=False)


def _sample_table(policy: PolicyResult, world: World) -> Table:
    title = "The same prompts before and after, with true utilities"
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, overflow="fold")
    for row in examples(judge(policy.before, world), judge(policy.after, world), 4):
        old, new = (f"{row[side]}\n[dim]{row[f'gold_{side}']:+.2f}" for side in ("before", "after"))
        table.add_row(row["prompt"], old, new)
    return table


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning from telling each stage which accelerators there are not."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lit_rlhf.data.datamodule",
    )
    silence_noise()
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
