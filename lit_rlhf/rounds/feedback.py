"""Where a round's preferences come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_rlhf.options import check_option, is_whole
from lit_rlhf.rounds.steps import Options, Round, Step

PREFERENCES = "preferences.jsonl"
"""The file of a round that holds them: prompt, chosen, rejected and p_chosen."""


class Feedback(ABC):
    """Samples of the policy, and what somebody says of them.

    Args:
        prompts: JSONL, JSON, CSV or Parquet with a prompt in each row; of several files, each round takes the next.
        num_samples: Completions of each prompt, at least 2.
        sample: Further options of `lit-rlhf generate`: `sampling`, `batch_size`, `dtype`, `prompt_column`, ...

    Raises:
        ConfigurationError: `num_samples` is out of range.
    """

    def __init__(
        self,
        prompts: str | list[str],
        num_samples: int = 4,
        sample: Options | None = None,
    ) -> None:
        valid = is_whole(num_samples, 2)
        check_option(valid, self, "num_samples", num_samples, "2 or more, to compare")
        self.prompts, self.num_samples, self.sample = prompts, num_samples, sample or {}

    @property
    def prompt_column(self) -> str:
        """Where the preferences have their prompts."""
        return "prompt"

    @abstractmethod
    def steps(self, planned: Round) -> Iterator[Step]:
        """The steps at whose end `preferences.jsonl` is there."""

    def generate(self, planned: Round, keep: str, output: str, **more: Any) -> Step:
        """The step that samples."""
        options = {"num_samples": self.num_samples, **self.sample}
        return generate(planned, self.prompts, keep, output, options, **more)


class RewardFeedback(Feedback):
    """Best against worst of each prompt, by a reward: a model, a rule, or `JudgeReward`.

    With a `LocalJudge` that has no `backbone` of its own the policy judges itself (self-rewarding, arXiv:2401.10020).

    Args:
        prompts: As for `Feedback`; rules may read its other columns.
        reward: As `--reward` of `lit-rlhf generate`: `class_path` and `init_args`.
        num_samples: As for `Feedback`.
        sample: As for `Feedback`.
    """

    def __init__(
        self,
        prompts: str | list[str],
        reward: Options,
        num_samples: int = 4,
        sample: Options | None = None,
    ) -> None:
        super().__init__(prompts, num_samples, sample)
        self.reward = reward

    @property
    def prompt_column(self) -> str:
        """That of the prompts: the rows keep their columns."""
        return str(self.sample.get("prompt_column", "prompt"))

    def steps(self, planned: Round) -> Iterator[Step]:
        """Sample and score."""
        yield self.generate(planned, "pairs", PREFERENCES, reward=self.reward)


class JudgeFeedback(Feedback):
    """All pairs of each prompt's completions, compared by a judge in both orders, with soft labels.

    Args:
        prompts: As for `Feedback`.
        judge: As `--judge` of `lit-rlhf label`: `class_path` and `init_args`; `{policy}` in a text is the policy.
        num_samples: As for `Feedback`; K completions make K (K - 1) questions.
        sample: As for `Feedback`.
    """

    def __init__(
        self,
        prompts: str | list[str],
        judge: Options,
        num_samples: int = 2,
        sample: Options | None = None,
    ) -> None:
        super().__init__(prompts, num_samples, sample)
        self.judge = judge

    def steps(self, planned: Round) -> Iterator[Step]:
        """Sample, then ask."""
        yield self.generate(planned, "candidates", "candidates.jsonl")
        (candidates,) = planned.files("candidates.jsonl")
        yield label(planned, candidates, PREFERENCES, self.judge)


class PeopleFeedback(Feedback):
    """Pairs that people compare: each round waits for the file that `lit-rlhf annotate --export` writes."""

    def steps(self, planned: Round) -> Iterator[Step]:
        """Sample, then wait."""
        yield self.generate(planned, "candidates", "candidates.jsonl")
        (candidates,), (wanted,) = planned.files("candidates.jsonl"), planned.files(PREFERENCES)
        labels = planned.directory / "labels"
        ask = (
            f"lit-rlhf annotate {candidates} --output {labels}\n"
            f"lit-rlhf annotate --output {labels} --export {wanted}"
        )
        yield Step("people", (), wanted, ask=ask)


def generate(
    planned: Round,
    prompts: str | list[str],
    keep: str,
    output: str,
    options: Options,
    **more: Any,
) -> Step:
    """The step that samples the policy.

    Args:
        planned: The round.
        prompts: A file, or several, of which each round takes the next.
        keep: As of `lit-rlhf generate`.
        output: Name of the file.
        options: Further ones.
        **more: Those that the method sets.
    """
    files = [prompts] if isinstance(prompts, str) else prompts
    (result,) = planned.files(output)
    given: dict[str, Any] = {
        "model": planned.policy,
        "prompts": files[planned.number % len(files)],
        "output": str(result),
        "keep": keep,
        "seed": planned.seed_of("sample"),
    }
    return Step("sample", ("generate",), result, planned.fill({**given, **options, **more}))


def label(planned: Round, data: Path, output: str, judge: Options) -> Step:
    """The step that asks a judge."""
    (result,) = planned.files(output)
    options = {
        "judge": planned.fill(judge),
        "output": str(result),
        "summary": str(result.with_suffix(".json")),
    }
    return Step(result.stem, ("label", str(data)), result, options)
