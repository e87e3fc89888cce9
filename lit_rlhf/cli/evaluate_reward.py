"""`lit-rlhf evaluate-reward`: whether a reward model can be trusted, as one HTML file; or two beside each other."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lit_rlhf.cli.functions import call
from lit_rlhf.cli.output import print_text, progress, refuse_input
from lit_rlhf.data import Format, Source
from lit_rlhf.data.sources import given_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.evaluation import (
    Comparisons,
    Difference,
    JudgeScorer,
    ModelScorer,
    RewardEvaluation,
    Scorer,
    compare_rewards,
    evaluate_reward,
    read_comparisons,
)
from lit_rlhf.evaluation.scorers import Layout, short_names
from lit_rlhf.judges import Judge
from lit_rlhf.models.precision import default_device
from lit_rlhf.models.specs import DTypeOption
from lit_rlhf.options import is_whole
from lit_rlhf.report.reward_page import report_reward
from lit_rlhf.report.reward_sections import percent


def evaluate(
    data: str | None = None,
    path: str | None = None,
    against: str | None = None,
    judge: Judge | None = None,
    source: Source | None = None,
    format: Format | None = None,
    subset: str = "subset",
    output: Path = Path("reward.html"),
    layout: Layout = "auto",
    perturbed: int = 200,
    invalid: Literal["drop", "error"] = "drop",
    base: str | None = None,
    dtype: DTypeOption = "float32",
    batch_tokens: int = 8192,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Hold a reward model against people's preferences, and write what is found as one HTML file.

    Accuracy by subset with intervals, RewardBench's sections, agreement beside the raters' own, calibration, biases to
    length and format, best-of-n, robustness to changes that say nothing, and the comparisons it is most wrong about.

    Args:
        data: JSONL, JSON, CSV, TSV or Parquet with pairs, rankings, or lists of good and bad answers (RewardBench 1 and
            2), or a directory of the `datasets` library.
        path: The reward model: a checkpoint (.ckpt), an export, or a sequence classifier with one label.
        against: A second one, to compare with the first by paired tests.
        judge: A judge in place of `path`: EndpointJudge or LocalJudge; see docs/howto/judges.md.
        source: Rows from elsewhere, instead of a file: HubSource and its kin.
        format: How a row becomes answers. Default: the format that reads the first rows.
        subset: Column that says which part of the data a row belongs to.
        output: The file; its numbers lie as JSON beside it.
        layout: Prompts of plain text as chats, or as they stand. auto: as the model has learned them; where it doesn't
            say, as chats if its tokenizer has a chat template.
        perturbed: Comparisons that are scored again after each of six small changes; 0: none.
        invalid: Rows that can't be used are left out and counted, or end it.
        base: Base of an adapter, if it is no longer where the adapter says.
        dtype: Of the models' weights; float32 keeps small differences of scores.
        batch_tokens: Most tokens that are scored at a time, padding included.
        seed: Of the bootstrap and of what is perturbed.
        trust_remote_code: Run code that comes with a model.
    """
    source = given_source(data, source, "Give --data FILE or --source, one of the two.")
    if (path is None) == (judge is None):
        raise ConfigurationError("Give --path MODEL or --judge, one of the two.")
    if not is_whole(perturbed, 0):
        raise ConfigurationError(f"--perturbed {perturbed} must be 0 or more.")
    refuse_input(output, source)
    comparisons = read_comparisons(source, format, subset, invalid)
    options: dict[str, Any] = {"dtype": dtype, "layout": layout, "batch_tokens": batch_tokens}
    options |= {"base": base, "trust_remote_code": trust_remote_code}
    if judge is not None:
        judge.to(default_device())
    scorers: list[Scorer] = [] if judge is None else [JudgeScorer(judge, type(judge).__name__)]
    scorers += [ModelScorer.load(name, **options) for name in (path, against) if name is not None]
    for scorer, name in zip(scorers, short_names([one.name for one in scorers]), strict=True):
        scorer.name = name if len(scorers) > 1 else scorer.name
    found = [_evaluated(scorer, comparisons, perturbed, seed) for scorer in scorers]
    difference = compare_rewards(found[0], found[1], seed) if len(found) == 2 else None
    command = shlex.join(["lit-rlhf", *sys.argv[1:]])
    print_text(_summary(found, difference))
    print_text(f"{report_reward(found, output, difference, command)}\n")


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    call(evaluate, words[1:], "evaluate-reward")


def _evaluated(
    scorer: Scorer, comparisons: Comparisons, perturbed: int, seed: int
) -> RewardEvaluation:
    with progress(f"scoring by {scorer.name}", len(comparisons.items)) as tell:
        return evaluate_reward(scorer, comparisons, perturbed=perturbed, seed=seed, tell=tell)


def _summary(found: Sequence[RewardEvaluation], difference: Difference | None) -> str:
    lines = []
    for one in found:
        span = f"{100 * one.accuracy.low:.1f} to {100 * one.accuracy.high:.1f}"
        lines.append(
            f"{one.model}: accuracy {percent(one.accuracy.value)} ({span}) on {len(one.scored)} comparisons"
        )
        lines += [f"  {each.name}: {percent(each.accuracy.value)}" for each in one.subsets]
        lines += [f"  section {name}: {percent(score)}" for name, score in one.sections.items()]
        lines += [f"  left out: {count} {reason}" for reason, count in one.left_out.items()]
    if difference is not None:
        span = f"{100 * difference.accuracy.low:+z.1f} to {100 * difference.accuracy.high:+z.1f}"
        lines.append(
            f"the second less the first: {100 * difference.accuracy.value:+z.1f} points of accuracy ({span}), "
            f"p = {difference.p_value:.2g} by McNemar's exact test"
        )
    return "\n".join(lines) + "\n"
