"""Judge policies and reward models on held-out film reviews.

    python -m benchmarks.human_sentiment.evaluate --root runs/human_sentiment --policies policy/checkpoints

The initial policy (`<root>/sft/export`) is measured first, then each of `--policies`: directories with an export or
with checkpoints, or checkpoint files, under the root. Gold is the compound score of vaderSentiment, a set of rules that
shares no weights and no training with the reward model. Where `<root>/gold_reward/export` exists, a reward model
trained on other raters, its score is shown too. Writes `<root>/evaluation.json` and `<root>/evaluation_samples.jsonl`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from benchmarks.human_sentiment.measures import (
    INITIAL,
    Measurement,
    Samples,
    accuracy_by_difference,
    attached_reward,
    judge_samples,
    load_policy,
    reward_margins,
    summarize,
)

COLUMNS = {
    "gold": "gold",
    "gold_stderr": "± s.e.",
    "gold_positive": "positive",
    "reward": "reward model",
    "gold_reward": "other raters' model",
    "kl": "KL, nats",
    "distinct_2": "distinct-2",
    "tokens": "tokens",
    "finished": "finished",
}


def evaluate_policies(
    measurement: Measurement, policies: Sequence[str], rewards: Mapping[str, Path]
) -> dict[str, tuple[dict[str, float], Samples]]:
    """Summary and samples of the initial policy and of each other one."""
    initial = load_policy(measurement.root, str(INITIAL))
    attached = {
        name: attached_reward(path, initial, measurement.root) for name, path in rewards.items()
    }
    judge = SentimentIntensityAnalyzer()
    results = {}
    for name in ("initial", *policies):
        policy = initial if name == "initial" else load_policy(measurement.root, name)
        samples = measurement.sample(policy, initial, attached)
        judge_samples(samples, judge)
        results[name] = (summarize(samples, list(attached)), samples)
    return results


def policy_table(summaries: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per policy."""
    shown = {
        key: title
        for key, title in COLUMNS.items()
        if any(key in row for row in summaries.values())
    }
    table = Table(title="Completions of held-out prompts", title_justify="left")
    table.add_column("policy")
    for title in shown.values():
        table.add_column(title, justify="right")
    for name, row in summaries.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in shown))
    return table


def accuracy_table(accuracies: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """One row per reward model, one column per least difference of ratings."""
    table = Table(
        title="Accuracy on held-out pairs, by least difference of mean ratings",
        title_justify="left",
    )
    table.add_column("reward model")
    for threshold, cell in next(iter(accuracies.values())).items():
        table.add_column(f">= {threshold} ({cell['pairs']} pairs)", justify="right")
    for name, row in accuracies.items():
        table.add_row(name, *(f"{cell['accuracy']:.3f}" for cell in row.values()))
    return table


def write(root: Path, report: Mapping[str, Any], samples: Mapping[str, Samples]) -> None:
    """The report as JSON and all samples as JSON lines."""
    (root / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    lines = (
        json.dumps({"policy": name, **row}, ensure_ascii=False)
        for name, rows in samples.items()
        for row in rows
    )
    (root / "evaluation_samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Judge policies and reward models on held-out film reviews."
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("runs/human_sentiment"),
        help="where prepare.py put everything",
    )
    parser.add_argument(
        "--policies", nargs="*", default=[], help="exports or checkpoints, under the root"
    )
    parser.add_argument(
        "--prompts", type=int, default=Measurement.prompts, help="held-out prompts to complete"
    )
    parser.add_argument("--max-new-tokens", type=int, default=Measurement.max_new_tokens)
    parser.add_argument("--seed", type=int, default=Measurement.seed)
    options = parser.parse_args(args)
    root: Path = options.root
    rewards = {
        name: root / name / "export"
        for name in ("reward", "gold_reward")
        if (root / name / "export").exists()
    }
    accuracies = {
        name: accuracy_by_difference(*reward_margins(path, root)) for name, path in rewards.items()
    }
    measurement = Measurement(
        root, prompts=options.prompts, max_new_tokens=options.max_new_tokens, seed=options.seed
    )
    results = evaluate_policies(measurement, options.policies, rewards)
    summaries = {name: summary for name, (summary, _) in results.items()}
    samples = {name: rows for name, (_, rows) in results.items()}
    write(root, {"policies": summaries, "reward_models": accuracies}, samples)
    console = Console()
    console.print(policy_table(summaries))
    if accuracies:
        console.print(accuracy_table(accuracies))
    for name, rows in samples.items():
        console.print(f"\n[bold]{name}")
        for row in rows[:6]:
            console.print(
                f"{row['gold']:+.2f}  {row['prompt']}[bold]{row['response']}", highlight=False
            )


if __name__ == "__main__":
    main()
