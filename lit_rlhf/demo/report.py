"""The report: one HTML file with everything in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.results import curves, examples, judge
from lit_rlhf.demo.stages import PolicyResult, RewardResult
from lit_rlhf.evaluation.measures import calibrate
from lit_rlhf.report import (
    Code,
    Figures,
    Numbers,
    Plot,
    Sample,
    Samples,
    Section,
    Series,
    Table,
    line_plot,
    reliability_plot,
    scatter_plot,
    write_page,
)

_TITLE = "Preference data → reward model → PPO"
_LEAD = (
    "A decoder trained from random weights on a small world of reviews whose best policy is known. Seed {seed}, "
    "{seconds:.0f} s."
)
_DONE = (
    "A prompt such as “review of the old hotel :” names a topic; a review judges aspects of it. "
    "What a review is worth, its "
    "gold utility, is a formula that no stage of training sees: praise counts by adjective, intensifier and negation, "
    "saturates, costs words, and counts once for each aspect; rambling costs more. Raters prefer the better of two "
    "reviews with probability σ(difference / {temperature}). {demonstrations:,} reviews give the initial policy (SFT, "
    "{sft:.0f} s), {pairs:,} noisy choices the reward model ({reward:.0f} s), and {iterations} iterations of PPO with "
    "{completions} completions each the final policy ({ppo:.0f} s). Everything here is measured "
    "on prompts that nothing "
    "was trained on, but for the curves over iterations."
)
_PROXY = "Mean 0 and deviation 1 on held-out human reviews. Thin lines are iterations, thick ones means of a few."
_GOLD = (
    "As long as it rises with the proxy, the policy gets better; "
    "where the proxy rises alone, it is being exploited."
)
_KL = "Per completion: what the reward was bought with."
_CLOUDS = (
    "Each mark is a completion of a held-out prompt. A cloud that bends away from the diagonal is where the reward "
    "model has lost touch."
)
_SURE = "When it is 80 % sure, 80 % of raters should agree (dotted line). Marks grow with the number of pairs."


def write_report(
    path: Path,
    summary: dict[str, Any],
    reward: RewardResult,
    policy: PolicyResult,
    config: DemoConfig,
) -> Path:
    """Write the report, and its numbers as JSON beside it.

    Args:
        path: The HTML file.
        summary: The numbers.
        reward: Result of the second stage.
        policy: Result of the third.
        config: What was run.

    Returns:
        The file.
    """
    seconds, stage = summary["stage_seconds"], config.policy
    done = _DONE.format(
        temperature=config.world.raters.temperature,
        demonstrations=config.supervised.demonstrations,
        pairs=config.reward.pairs,
        iterations=stage.iterations,
        completions=stage.prompts * stage.num_samples,
        **seconds,
    )
    again = f"lit-rlhf demo --seed {summary['seed']}\nlit-rlhf report {path.parent / 'ppo'}"
    sections = [
        Section("What came out", [_headline(summary)]),
        Section("What was done", text=done),
        Section("How it went", [Figures(_plots(summary, reward, policy, config))]),
        Section("The same prompts before and after", [_examples(policy, config)]),
        Section(
            "Numbers", [_numbers(summary)], "The same for programs: summary.json beside this file."
        ),
        Section("Again", [Code(again, "the demo, and every curve of its PPO run")]),
    ]
    return write_page(path, _TITLE, sections, _LEAD.format(**summary))


def _headline(summary: dict[str, Any]) -> Numbers:
    ppo, reward = summary["ppo"], summary["reward_model"]
    gap = (
        f"of the gap between the initial policy ({ppo['gold_before']:.2f}) and the best there is "
        f"({ppo['gold_max']:.2f}) closed in true utility"
    )
    known = (
        "reward-model accuracy on held-out choices; perfect knowledge of the utility reaches "
        f"{reward['bayes_accuracy']:.3f}"
    )
    error = f"{reward['calibration_error']:.3f}"
    return Numbers(
        [
            (f"{ppo['gap_closed']:.0%}", gap),
            (f"{ppo['kl']:.2f}", "nats of KL to the initial policy per completion"),
            (f"{reward['accuracy']:.3f}", known),
            (error, "expected calibration error of the reward model"),
        ]
    )


def _plots(
    summary: dict[str, Any], reward: RewardResult, policy: PolicyResult, config: DemoConfig
) -> Sequence[Plot]:
    world = config.world.world
    before, after = judge(policy.before, world), judge(policy.after, world)
    lines = curves(policy, world)
    series = {
        name: [Series(name, range(1, len(values) + 1), values)] for name, values in lines.items()
    }
    clouds = {"initial policy": (before.proxy, before.gold), "after PPO": (after.proxy, after.gold)}
    best = {"best reachable": summary["ppo"]["gold_max"]}
    proxy, gold = "proxy: the reward model's score", "gold: true utility"
    sure, agree = "confidence: σ(|score difference|)", "share of raters who agree"
    calibration = calibrate(reward.margins, torch.ones_like(reward.margins))
    bins = {"reward model": calibration.bins}
    return [
        line_plot("Proxy: the reward model's score", series["proxy"], y="score", caption=_PROXY),
        line_plot(
            "Gold: the true utility", series["gold"], y="utility", levels=best, caption=_GOLD
        ),
        line_plot("KL to the initial policy", series["kl"], y="nats", zero=True, caption=_KL),
        scatter_plot("Gold against proxy", clouds, x=proxy, y=gold, caption=_CLOUDS),
        reliability_plot("Calibration of the reward model", bins, x=sure, y=agree, caption=_SURE),
    ]


def _examples(policy: PolicyResult, config: DemoConfig) -> Samples:
    world = config.world.world
    samples = [
        Sample(
            [
                ("prompt", row["prompt"]),
                (f"initial policy, gold {row['gold_before']:+.2f}", row["before"]),
                (f"after PPO, gold {row['gold_after']:+.2f}", row["after"]),
            ]
        )
        for row in examples(judge(policy.before, world), judge(policy.after, world), 8)
    ]
    return Samples(samples, shown=4)


def _numbers(summary: dict[str, Any]) -> Table:
    ppo, reward = summary["ppo"], summary["reward_model"]
    distinct = "distinct-2: different word pairs among all"
    rows = [
        ["true utility (gold)", ppo["gold_before"], ppo["gold_after"], ppo["gold_max"]],
        ["reward-model score (proxy)", ppo["reward_before"], ppo["reward_after"], None],
        ["KL to the initial policy, nats per completion", 0.0, ppo["kl"], None],
        [distinct, ppo["distinct_2_before"], ppo["distinct_2_after"], None],
        ["words per completion", ppo["words_before"], ppo["words_after"], None],
        ["reward-model accuracy", 0.5, reward["accuracy"], reward["bayes_accuracy"]],
    ]
    return Table(["", "before", "after", "best possible"], rows)
