"""Where a round's preferences come from."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from lit_rlhf.options import check_option, is_text, is_whole
from lit_rlhf.rounds.steps import Options, Round, Step

PREFERENCES = "preferences.jsonl"
"""The file of a round that holds them: prompt, chosen, rejected and p_chosen."""

CRITIQUE = """\
Somebody answered a request.

<request>
{{ prompt }}
</request>

<answer>
{{ answer }}
</answer>

Say where the answer falls short of this principle, and how to mend it: {{ principle }}"""
REVISION = """\
Somebody answered a request, and somebody else criticized the answer.

<request>
{{ prompt }}
</request>

<answer>
{{ answer }}
</answer>

<critique>
{{ critique }}
</critique>

Answer the request anew, so that the answer follows this principle: {{ principle }} Write the answer alone."""


class Feedback(ABC):
    """Samples of the policy, and what somebody says of them.

    Args:
        prompts: JSONL, JSON, CSV or Parquet with a prompt in each row; of several files, each round takes the next.
        num_samples: Completions of each prompt; where they are compared with each other, at least 2.
        sample: Further options of `lit-rlhf generate`: `sampling`, `batch_size`, `dtype`, `prompt_column`, ...

    Raises:
        ConfigurationError: `num_samples` is out of range.
    """

    least: ClassVar[int] = 2
    soft: bool = True
    """Whether preferences come with `p_chosen`."""

    def __init__(
        self, prompts: str | list[str], num_samples: int = 4, sample: Options | None = None
    ) -> None:
        valid = is_whole(num_samples, self.least)
        check_option(valid, self, "num_samples", num_samples, f"{self.least} or more")
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


class RevisionFeedback(Feedback):
    """Constitutional AI (arXiv:2212.08073): the policy answers, criticizes that by a principle, and revises it.

    Chosen is the revision, or what a judge prefers of the two. Principles take turns over the answers. A prompt whose
    answer or revision was cut at the length limit is left out.

    Args:
        prompts: As for `Feedback`.
        principles: What answers are held to, one sentence each.
        judge: As for `JudgeFeedback`. None: the revision is taken to be better, without a soft label.
        num_samples: Answers to each prompt, each revised once; 1 or more.
        sample: As for `Feedback`.
        critique: Jinja of the question for a critique; reads `prompt`, `answer` and `principle`.
        revision: Of that for a revision; reads `critique`, too.
    """

    least: ClassVar[int] = 1

    def __init__(
        self,
        prompts: str | list[str],
        principles: list[str],
        judge: Options | None = None,
        num_samples: int = 1,
        sample: Options | None = None,
        critique: str = CRITIQUE,
        revision: str = REVISION,
    ) -> None:
        super().__init__(prompts, num_samples, sample)
        said = bool(principles) and all(map(is_text, principles))
        check_option(said, self, "principles", principles, "one sentence or more")
        self.principles, self.judge = principles, judge
        self.critique, self.revision = critique, revision

        self.soft = judge is not None
        self._column = str(self.sample.get("prompt_column", "prompt"))

    @property
    def prompt_column(self) -> str:
        """That of the prompts, or of the judge's file."""
        return "prompt" if self.soft else self._column

    def steps(self, planned: Round) -> Iterator[Step]:
        """Answer, criticize, revise, compare."""
        revised = PREFERENCES if self.judge is None else "revisions.jsonl"
        options = {**self.sample, "num_samples": self.num_samples}
        yield generate(
            planned, self.prompts, "finished", "answers.jsonl", options, "answer",
            response_column="rejected",
        )  # fmt: skip
        options["num_samples"] = 1
        (answers,), (critiques,) = planned.files("answers.jsonl"), planned.files("critiques.jsonl")
        # All critiques, so that a row keeps its number, and with it its principle.
        yield generate(
            planned, str(answers), "all", "critiques.jsonl", options, "critique",
            response_column="critique", prompt_template=self._question(self.critique),
        )  # fmt: skip
        yield generate(
            planned, str(critiques), "finished", revised, options, "revision",
            response_column="chosen", prompt_template=self._question(self.revision),
        )  # fmt: skip
        if self.judge is not None:
            read = {"class_path": "ExplicitPrompt", "init_args": {"prompt": self._column}}
            more = {"format": read, "skip_invalid": True}  # a revision may be the answer as it was
            (revisions,) = planned.files(revised)
            yield label(planned, revisions, PREFERENCES, self.judge, **more)

    def _question(self, template: str) -> str:
        principle = f"{json.dumps(self.principles)}[number % {len(self.principles)}]"
        names = f"{{% set principle, answer = {principle}, rejected %}}"
        own = "" if self._column == "prompt" else f"{{% set prompt = {self._column} %}}"
        return names + own + template


def generate(
    planned: Round,
    prompts: str | list[str],
    keep: str,
    output: str,
    options: Options,
    name: str = "sample",
    **more: Any,
) -> Step:
    """The step that samples the policy.

    Args:
        planned: The round.
        prompts: A file, or several, of which each round takes the next.
        keep: As of `lit-rlhf generate`.
        output: Name of the file.
        options: Further ones.
        name: Of the step.
        **more: Those that the method sets.
    """
    files = [prompts] if isinstance(prompts, str) else prompts
    (result,) = planned.files(output)
    given: dict[str, Any] = {
        "model": planned.policy,
        "prompts": files[planned.number % len(files)],
        "output": str(result),
        "keep": keep,
        "seed": planned.seed_of(name),
    }
    every = planned.fill({**given, **options, **more})
    own = [file for file in planned.fill(files) if Path(file).parent != planned.directory]
    return Step(name, ("generate",), result, every, reads=tuple(own))


def label(planned: Round, data: Path, output: str, judge: Options, **more: Any) -> Step:
    """The step that asks a judge; `more` are further options of `lit-rlhf label`."""
    (result,) = planned.files(output)
    options = {
        "judge": planned.fill(judge),
        "output": str(result),
        "summary": str(result.with_suffix(".json")),
        **more,
    }
    return Step(result.stem, ("label", str(data)), result, options)
