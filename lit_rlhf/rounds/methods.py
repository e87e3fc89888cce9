"""What a round does: collect, judge, train, by the name under which it is known."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_rlhf.rounds.feedback import PREFERENCES, Feedback, generate
from lit_rlhf.rounds.steps import Options, Round, Step
from lit_rlhf.rounds.training import Training

_DEMONSTRATIONS = "demonstrations.jsonl"


class Method(ABC):
    """A list of steps, the last of which trains the policy under the name `policy`."""

    @abstractmethod
    def steps(self, planned: Round) -> Iterator[Step]:
        """The steps of a round, in order."""


class IterativeDPO(Method):
    r"""Sample, compare, train on the preferences, and again (arXiv:2312.11456, self-rewarding 2401.10020).

    The reference of a round is the policy that it starts from; with `start: previous` it moves, and nothing but the
    number of rounds holds the policy to the first one: T rounds towards the same reward end at
    $\pi_0 e^{T r / \beta} / Z$. With `start: initial, data: all` every round trains the first policy anew, on all data
    so far, and the reference stays.

    Args:
        feedback: Where preferences come from: `RewardFeedback`, `JudgeFeedback` or `PeopleFeedback`.
        training: Of the policy; default: `preference/dpo_lora`, with `SoftLabelDPO` where the data have `p_chosen`.
    """

    def __init__(self, feedback: Feedback, training: Training | None = None) -> None:
        soft = {"class_path": "SoftLabelDPO", "init_args": {"beta": 0.1}}
        options: Options = {"model": {"init_args": {"loss": soft}}}
        self.feedback = feedback
        self.training = training or Training(
            ["preference/dpo_lora"], options if feedback.soft else {}
        )

    def steps(self, planned: Round) -> Iterator[Step]:
        """Preferences, then a policy."""
        yield from self.feedback.steps(planned)
        files = planned.files(PREFERENCES, self.training.data == "all")
        options = _formatted("ExplicitPrompt", self.feedback.prompt_column)
        yield self.training.step(planned, "policy", files, options)


class SelfPlay(Method):
    """Demonstrations against the policy's own samples: SPIN (arXiv:2401.01335). It stands still at the demonstrations.

    Args:
        demonstrations: JSONL, JSON, CSV or Parquet with a prompt and a completion in each row; of several files, each
            round takes the next.
        num_samples: Completions of each prompt, each against the demonstration.
        training: Of the policy; default: `preference/dpo_lora`. Its reference is the policy that sampled, so leave
            `start: previous`.
        sample: Further options of `lit-rlhf generate`: `sampling`, `batch_size`, `completion_column`, ...
    """

    def __init__(
        self,
        demonstrations: str | list[str],
        num_samples: int = 1,
        training: Training | None = None,
        sample: Options | None = None,
    ) -> None:
        self.demonstrations, self.num_samples = demonstrations, num_samples
        self.training = training or Training(["preference/dpo_lora"])
        self.sample = sample or {}

    def steps(self, planned: Round) -> Iterator[Step]:
        """Pairs, then a policy."""
        options = {"num_samples": self.num_samples, **self.sample}
        yield generate(planned, self.demonstrations, "self_play", PREFERENCES, options)
        files = planned.files(PREFERENCES, self.training.data == "all")
        yield self.training.step(planned, "policy", files, _formatted("ExplicitPrompt"))


class RejectionSampling(Method):
    r"""Best of n, then imitate it: RAFT (arXiv:2304.06767), ReST with one threshold per prompt (arXiv:2308.08998).

    After T rounds that is best of $n^T$; a round's KL is at most $\log n - (n - 1)/n$ nats.

    Args:
        prompts: As for `Feedback`.
        reward: As `--reward` of `lit-rlhf generate`: `class_path` and `init_args`.
        num_samples: n, completions of each prompt.
        num_best: How many of them are imitated.
        training: Of the policy; default: `sft/lora`.
        sample: Further options of `lit-rlhf generate`.
    """

    def __init__(
        self,
        prompts: str | list[str],
        reward: Options,
        num_samples: int = 8,
        num_best: int = 1,
        training: Training | None = None,
        sample: Options | None = None,
    ) -> None:
        self.prompts, self.reward = prompts, reward
        self.training = training or Training(["sft/lora"])
        self.sample = {"num_samples": num_samples, "num_best": num_best, **(sample or {})}

    def steps(self, planned: Round) -> Iterator[Step]:
        """Demonstrations, then a policy."""
        made = generate(
            planned, self.prompts, "best", _DEMONSTRATIONS, self.sample, reward=self.reward
        )
        yield made
        files = planned.files(_DEMONSTRATIONS, self.training.data == "all")
        column = made.options.get("prompt_column", "prompt")
        yield self.training.step(planned, "policy", files, _formatted("Demonstration", column))


class RewardRefresh(Method):
    """Label samples of the policy, train the reward model on all labels so far, then the policy on that reward.

    A reward model knows what it was shown; as the policy moves away from that, new labels keep it honest
    (arXiv:2204.05862, 2203.02155). The reward model is trained anew in each round, from the first policy by default.

    Args:
        feedback: Where preferences come from: people or a judge.
        prompts: What the policy is trained on; of several files, each round takes the next.
        preferences: A file of preferences that the reward model is trained on beside the rounds' own.
        reward_training: Of the reward model; default: `reward/full`.
        training: Of the policy; default: `policy/ppo_lora`. Its `reward` must have a `path`, as `ModelReward` has.
    """

    def __init__(
        self,
        feedback: Feedback,
        prompts: str | list[str],
        preferences: str | None = None,
        reward_training: Training | None = None,
        training: Training | None = None,
    ) -> None:
        self.feedback, self.preferences = feedback, preferences
        self.prompts = [prompts] if isinstance(prompts, str) else prompts
        self.reward_training = reward_training or Training(
            ["reward/full"], start="initial", data="all"
        )
        self.training = training or Training(["policy/ppo_lora"])

    def steps(self, planned: Round) -> Iterator[Step]:
        """Preferences, then a reward model, then a policy."""
        yield from self.feedback.steps(planned)
        files = planned.files(PREFERENCES, self.reward_training.data == "all")
        given = [] if self.preferences is None else [self.preferences]
        files = [*map(Path, given), *files]
        options = _formatted("ExplicitPrompt", self.feedback.prompt_column)
        reward = self.reward_training.step(planned, "reward", files, options, given)
        yield reward
        prompts = Path(self.prompts[planned.number % len(self.prompts)])
        model = {"init_args": {"reward": {"init_args": {"path": str(reward.result)}}}}
        yield self.training.step(planned, "policy", [prompts], {"model": model}, self.prompts)


def _formatted(name: str, prompt: str = "prompt") -> dict[str, Any]:
    """How rows are read: they have more columns than one reading."""
    return {
        "data": {"init_args": {"format": {"class_path": name, "init_args": {"prompt": prompt}}}}
    }
