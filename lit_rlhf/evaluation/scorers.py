"""What scores answers: reward models and judges."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_rlhf.data import AsChat, AsTranscript, ExplicitPrompt, InvalidRowError, Record
from lit_rlhf.data.collate import BranchedCollator
from lit_rlhf.data.encoding import Encoded, Encoder
from lit_rlhf.evaluation.comparisons import Comparison
from lit_rlhf.judges import Judge, PairwiseJudge
from lit_rlhf.models import Backbone, evaluating
from lit_rlhf.models.specs import DTypeOption
from lit_rlhf.options import check_option, is_whole
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.rewards.scoring import context_length
from lit_rlhf.rewards.trained import TrainedReward
from lit_rlhf.types import asked

Layout = Literal["auto", "chat", "text"]
Scored = Tensor | InvalidRowError
"""(K,) float32 on the CPU, or why the answers could not be scored."""


class Scorer(ABC):
    """Scores the answers of comparisons.

    Attributes:
        name: What reports call it.
        probabilistic: Whether the sigmoid of a difference of scores is meant as a probability.
    """

    name: str
    probabilistic: bool = True

    @abstractmethod
    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored]:
        """Scores of each comparison's answers, in order; higher is better.

        Args:
            comparisons: What to score.
            tell: Is told how many are done.
        """

    def position_bias(self) -> Tensor | None:
        """(n,) how far what is shown first is favored, of all pairs seen; None of what sees one answer at a time."""
        return None


class ModelScorer(Scorer):
    """A reward model: an export, a checkpoint, or a sequence classifier with one label.

    Prompts are written as those that it was trained on, where it says so. Otherwise plain text becomes a chat where its
    tokenizer has a chat template. All answers of a prompt are scored in one row, rows of similar length together.

    Args:
        backbone: Of the reward model, with the head "reward".
        name: What reports call it.
        layout: As chats, or text as it stands. auto: as said above.
        learned: How the prompts that it was trained on were written.
        batch_tokens: Most tokens at a time, padding included; a single prompt with its answers may exceed it.

    Raises:
        ConfigurationError: `batch_tokens` is below 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        layout: Layout = "auto",
        learned: PromptForm | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        check_option(is_whole(batch_tokens, 1), self, "batch_tokens", batch_tokens, "1 or more")
        self.backbone = backbone
        self.name = name
        self.batch_tokens = batch_tokens
        template = backbone.tokenizer.chat_template is not None
        if layout == "auto":
            layout = "text" if not template or (learned and learned.kind == "text") else "chat"
        self.layout: Layout = layout
        self._template = template
        system = learned.system if learned is not None and learned.kind == "chat" else None
        self._chat = AsChat(ExplicitPrompt(), system=system or None)
        self._encoder = Encoder(backbone.tokenizer)
        self._collator = BranchedCollator(backbone.pad_token_id)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        base: str | None = None,
        dtype: DTypeOption = "float32",
        layout: Layout = "auto",
        batch_tokens: int = 8192,
        trust_remote_code: bool = False,
    ) -> "ModelScorer":
        """Load a reward model, onto the GPU where there is one.

        Args:
            path: A checkpoint (.ckpt) of RewardModelModule, an export, or a classifier's directory or hub id.
            base: Base of an adapter, if it is no longer where the adapter says.
            dtype: Of the model's weights.
            layout: See the class.
            batch_tokens: See the class.
            trust_remote_code: Run code that comes with the model.

        Raises:
            ConfigurationError: There is no such model, or it is no reward model.
            CheckpointError: Files are torn or incomplete.
        """
        trained = TrainedReward.read(path, base)
        backbone = trained.load({"dtype": dtype, "trust_remote_code": trust_remote_code})
        backbone = backbone.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(backbone, path, layout, trained.prompts(), batch_tokens)

    @torch.no_grad()
    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored]:
        """Scores by the head "reward", at each answer's last token."""
        found: list[Scored] = [InvalidRowError("not scored", "")] * len(comparisons)
        records: dict[int, Record] = {}
        for place, comparison in enumerate(comparisons):
            try:
                records[place] = self._write(comparison)
            except InvalidRowError as error:
                found[place] = error
        rows: dict[int, Encoded] = {}
        for place, row in zip(records, self._encoder.encode([*records.values()]), strict=True):
            if (problem := self._problem(row)) is not None:
                found[place] = problem
            elif not isinstance(row, InvalidRowError):
                rows[place] = row
        done = len(comparisons) - len(rows)
        tell(done)
        with evaluating(self.backbone):
            for part in self._batches(rows):
                lines = [
                    {"prompt_ids": rows[i].prompt, "completion_ids": rows[i].completions}
                    for i in part
                ]
                batch = self._collator.layout(lines)
                widest = len(rows[part[0]].completions)
                out = self.backbone(
                    move_data_to_device(batch, self.backbone.device),
                    num_branches=widest,
                    role="reward",
                    scores="reward",
                )
                scores = asked(out.scores).view(len(part), widest).float().cpu()
                for place, line in zip(part, scores, strict=True):
                    found[place] = line
                done += len(part)
                tell(done)
        return found

    def _write(self, comparison: Comparison) -> Record:
        """The record as this model reads it."""
        record = comparison.record()
        if self.layout == "chat":
            return self._chat.convert(record)
        is_chat = not isinstance(record.prompt, str)
        if not self._template and (is_chat or comparison.style == "turns"):
            return AsTranscript(ExplicitPrompt()).convert(replace(record, template=None))
        return record

    def _problem(self, row: Encoded | InvalidRowError) -> InvalidRowError | None:
        if isinstance(row, InvalidRowError):
            return row
        context = context_length(self.backbone)
        longest = len(row.prompt) + max(map(len, row.completions))
        if context is not None and longest > context:
            return InvalidRowError(
                "longer than the model reads", f"{longest} tokens, it reads {context}"
            )
        return None

    def _batches(self, rows: dict[int, Encoded]) -> Iterator[list[int]]:
        """Places of rows of similar length and equal number of answers, the longest first."""
        sizes = {i: len(row.prompt) + sum(map(len, row.completions)) for i, row in rows.items()}
        order = sorted(rows, key=lambda i: (-len(rows[i].completions), -sizes[i]))
        part: list[int] = []
        for place in order:
            alike = part and len(rows[part[0]].completions) == len(rows[place].completions)
            if part and (not alike or sizes[part[0]] * (len(part) + 1) > self.batch_tokens):
                yield part
                part = []
            part.append(place)
        if part:
            yield part


@dataclass(eq=False)
class JudgeScorer(Scorer):
    r"""A judge as a reward model.

    One that compares two answers is asked about each pair in both orders, and $s_i = \frac1K\sum_j \operatorname{logit}
    p_{ij}$, as `JudgeReward` has it: of a pair, the difference of scores is the logit of its verdict. One that scores
    single answers gives the value of its verdict.

    Args:
        judge: The judge.
        name: What reports call it.
        clip: Probabilities are held within [clip, 1 - clip].
    """

    judge: Judge
    name: str = "judge"
    clip: float = 0.01

    def __post_init__(self) -> None:
        self.probabilistic = self.judge.pairwise
        self._biases: list[float] = []

    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored]:
        """Scores by the judge's verdicts; of what it fails at there are none."""
        found = self._compare(comparisons) if self.judge.pairwise else self._rate(comparisons)
        tell(len(comparisons))
        return found

    def position_bias(self) -> Tensor | None:
        """Of a judge that compares."""
        return torch.tensor(self._biases) if self._biases else None

    def _rate(self, comparisons: Sequence[Comparison]) -> list[Scored]:
        cases = [
            {"prompt": each.prompt, "response": answer}
            for each in comparisons
            for answer in each.answers
        ]
        values = iter(self.judge.judge(cases))
        found: list[Scored] = []
        for each in comparisons:
            own = [next(values) for _ in each.answers]
            known = [value for value in own if value is not None]
            found.append(torch.tensor(known) if len(known) == len(own) else _NO_VERDICT)
        return found

    def _compare(self, comparisons: Sequence[Comparison]) -> list[Scored]:
        places = [
            (n, i, j)
            for n, each in enumerate(comparisons)
            for i in range(len(each.answers))
            for j in range(i + 1, len(each.answers))
            if each.answers[i] != each.answers[j]
        ]
        asked_of = [comparisons[n] for n, _, _ in places]
        opinions = PairwiseJudge(self.judge).compare(
            [
                (each.prompt, each.answers[i], each.answers[j])
                for each, (_, i, j) in zip(asked_of, places, strict=True)
            ]
        )
        found: list[Scored] = [torch.zeros(len(each.answers)) for each in comparisons]
        for (n, i, j), opinion in zip(places, opinions, strict=True):
            scores = found[n]
            if opinion is None or isinstance(scores, InvalidRowError):
                found[n] = _NO_VERDICT
                continue
            self._biases.append(opinion.bias)
            p = min(max(opinion.p_first, self.clip), 1 - self.clip)
            share = math.log(p / (1 - p)) / len(scores)
            scores[i] += share
            scores[j] -= share
        return found


_NO_VERDICT = InvalidRowError("the judge gave no verdict", "it failed or abstained")


def name_of(path: str) -> str:
    """A short name of a model: a hub id as it is, of a path its last parts.

    Example:
        >>> name_of("runs/reward/lora/export"), name_of("org/model")
        ('lora/export', 'org/model')
    """
    parts = Path(path).parts
    return "/".join(parts[-2:]) if Path(path).exists() or len(parts) > 2 else path
