"""What is measured after each round, and when the rounds stop."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import read_lines
from lit_rlhf.options import check_option, is_number, is_whole
from lit_rlhf.report.runs import flat_options
from lit_rlhf.rounds.steps import Options, Step, fill

_SAMPLES, _LABELS = "evaluation.jsonl", "agreement.jsonl"
Measures = dict[str, float]


@dataclass
class Evaluation:
    """What is measured of the first policy and of each round's, with the same seeds.

    On held-out prompts: `score`, the mean of a reward (with `score_stderr`), `kl`, the KL to the first policy in nats
    per completion, and `finished`, the share of completions that ended. On held-out preferences: `agreement`, how often
    the judge's side of a pair is the data's.

    Args:
        prompts: A file of prompts that no round samples.
        reward: A reward beside the one that is optimized, lest its mistakes count as progress; as `--reward` of
            `lit-rlhf generate`.
        num_samples: Completions of each prompt.
        sample: Further options of `lit-rlhf generate`. A cut distribution (top-k, top-p, temperature 0) has no KL.
        labels: A file of preferences by people.
        judge: Who is compared with them, as `--judge` of `lit-rlhf label`; `{policy}` in a text is the policy.

    Raises:
        ConfigurationError: Half of a pair of options, or nothing to measure.
    """

    prompts: str | None = None
    reward: Options | None = None
    num_samples: int = 1
    sample: Options | None = None
    labels: str | None = None
    judge: Options | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        check_option(
            is_whole(self.num_samples, 1), self, "num_samples", self.num_samples, "1 or more"
        )
        for one, other in (("prompts", "reward"), ("labels", "judge")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ConfigurationError(
                    f"Evaluation.{one} and Evaluation.{other} go together: give both, or none."
                )
        if self.prompts is None and self.labels is None:
            raise ConfigurationError(
                "Evaluation measures nothing: give prompts and reward, or labels and judge."
            )

    def steps(self, directory: Path, policy: str, initial: str, seed: int) -> Iterator[Step]:
        """The steps that measure a policy.

        Args:
            directory: Of its round.
            policy: The one to measure.
            initial: The one that the first round started from.
            seed: Of the samples.
        """
        if self.prompts is not None:
            result = directory / _SAMPLES
            options = {
                "model": policy,
                "reference": initial,
                "prompts": self.prompts,
                "reward": self.reward,
                "num_samples": self.num_samples,
                "output": str(result),
                "seed": seed,
                **(self.sample or {}),
            }
            options = fill(options, policy=policy)
            yield Step("evaluation", ("generate",), result, options, reads=(options["prompts"],))
        if self.labels is not None:
            result = directory / _LABELS
            options = {
                "judge": fill(self.judge, policy=policy),
                "output": str(result),
                "summary": str(result.with_suffix(".json")),
            }
            words = ("label", self.labels)
            yield Step("agreement", words, result, options, reads=(self.labels,))

    @property
    def measures(self) -> set[str]:
        """Which of the measures that can stop the rounds it has."""
        return {
            *(("score", "kl") if self.prompts else ()),
            *(("agreement",) if self.labels else ()),
        }


def said_in(files: Iterable[str]) -> str:
    """A line for each file of rows, with a hash of what it holds; for the file with a step's options."""
    digests = {
        file: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for file in files
        if Path(file).is_file()
    }
    return "".join(f"# {file}, {digest[:16]}\n" for file, digest in digests.items())


def refuse_other_measures(step: Step, file: Path) -> None:
    """Refuse to set what is measured now beside what was measured with other options.

    Args:
        step: Of an evaluation.
        file: Where its options stood when it ran; where its result or this is missing, nothing is refused.

    Raises:
        ConfigurationError: Names the options that differ, with both values.
    """
    if not step.done or not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    before, now = yaml.safe_load(text), dict(step.options)
    # All rounds may have been moved since.
    root, old = (str(Path(options["output"]).parents[1]) for options in (now, before))
    before = yaml.safe_load(text.replace(f"{old}/", f"{root}/"))
    was, given = dict(flat_options(before)), dict(flat_options(now))
    other = [
        f"{name} was {was.get(name)!r}, is {given.get(name)!r}"
        for name in {**was, **given}
        if was.get(name) != given.get(name)
    ]
    rows = [line for line in said_in(step.reads).splitlines() if line not in text.splitlines()]
    if text.startswith("# "):  # else of a former release
        other += [f"{line[2:].rpartition(', ')[0]} holds other rows" for line in rows]
    if other:
        raise ConfigurationError(
            f"{step.result} was measured with other options than those that are given now, and measures of different "
            f"ones can't be compared: {'; '.join(other)}. Put the former ones back (see {file}), or have all policies "
            f"measured anew: rm {root}/*/{step.result.name}"
        )


def measure(directory: Path) -> Measures:
    """What the files of a round say.

    Args:
        directory: Of the round.

    Returns:
        By name; what wasn't measured is left out.
    """
    found: Measures = {}
    for name, column in (("preferences", "chosen_score"), ("demonstrations", "score")):
        if (file := directory / f"{name}.jsonl").is_file():
            rows = read_lines(file)
            found["rows"] = len(rows)
            scores = [row[column] for row in rows if column in row]
            found |= {"collected_score": fmean(scores)} if scores else {}
    if (file := directory / _SAMPLES).is_file():
        asked = directory / "evaluation.yaml"
        options = yaml.safe_load(asked.read_text(encoding="utf-8")) if asked.is_file() else {}
        found |= _of_samples(read_lines(file), options.get("num_samples", 1))
    for name, prefix in (("preferences", "judge_"), ("agreement", "")):
        if (file := directory / f"{name}.json").is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
            told = {key: summary[key] for key in ("agreement", "position_bias")}
            found |= {f"{prefix}{key}": value for key, value in told.items() if value is not None}
    if (file := directory / "reward" / "metrics.jsonl").is_file():
        values = [row["val/accuracy"] for row in read_lines(file) if "val/accuracy" in row]
        found |= {"reward_accuracy": values[-1]} if values else {}
    return found


def _of_samples(rows: Sequence[Mapping[str, Any]], num_samples: int) -> Measures:
    """Scores are independent by prompt, not by sample."""
    groups = [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
    known = [[row["score"] for row in group if row["score"] is not None] for group in groups]
    prompts = [fmean(scores) for scores in known if scores]
    error = stdev(prompts) / math.sqrt(len(prompts)) if len(prompts) > 1 else math.nan
    found = {name: fmean(row[name] for row in rows) for name in ("kl", "finished")}
    found |= {"score": fmean(prompts)} if prompts else {}  # a judge may say nothing of any
    return found | ({"score_stderr": error} if math.isfinite(error) else {})


@dataclass
class Stop:
    """When the rounds end before their number is reached; null never.

    Args:
        max_kl: Most KL to the first policy, in nats per completion.
        max_score_drop: Most that the evaluation's score may be below the best so far, in units of its reward. 0 stops
            at any fall; `score_stderr` in the record says what is noise.
        max_agreement_drop: Most that the agreement of judge and labels may be below the best so far, 0 to 1.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    max_kl: float | None = None
    max_score_drop: float | None = None
    max_agreement_drop: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("max_kl", "max_score_drop", "max_agreement_drop"):
            value = getattr(self, name)
            valid = value is None or (is_number(value) and value >= 0)
            check_option(valid, self, name, value, "0 or more, or null")

    def check(self, evaluation: Evaluation | None) -> None:
        """Refuse rules for what isn't measured.

        Raises:
            ConfigurationError: Names the rule.
        """
        has = evaluation.measures if evaluation else set()
        for rule, name in (
            ("max_kl", "kl"),
            ("max_score_drop", "score"),
            ("max_agreement_drop", "agreement"),
        ):
            if getattr(self, rule) is not None and name not in has:
                needed = "labels and judge" if name == "agreement" else "prompts and reward"
                raise ConfigurationError(
                    f"stop.{rule}={getattr(self, rule)} looks at {name!r}, which nothing measures: give evaluation."
                    f"{needed}."
                )

    def reason(self, measured: Sequence[Measures]) -> str | None:
        """Why the rounds end here; None where they go on.

        Args:
            measured: Of the first policy, and of each round so far.
        """
        last = measured[-1]
        if self.max_kl is not None and last["kl"] > self.max_kl:
            return f"KL to the first policy is {last['kl']:.3g} nats, above max_kl={self.max_kl}"
        for name, most in (("score", self.max_score_drop), ("agreement", self.max_agreement_drop)):
            best = max((each[name] for each in measured if name in each), default=-math.inf)
            if most is not None and best - last.get(name, math.inf) > most:
                return f"{name} fell from {best:.4g} to {last[name]:.4g}, by more than max_{name}_drop={most}"
        return None
