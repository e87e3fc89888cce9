"""What scores answers, reward models that do, and how far several of them disagree."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_rlhf.data import AsChat, AsTranscript, ExplicitPrompt, InvalidRowError, Record
from lit_rlhf.data.collate import BranchedCollator
from lit_rlhf.data.encoding import Encoded, Encoder
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.evaluation.comparisons import Comparison
from lit_rlhf.evaluation.measures import margin_deviation
from lit_rlhf.models import Backbone, evaluating
from lit_rlhf.models.precision import default_device
from lit_rlhf.models.specs import DTypeOption
from lit_rlhf.options import check_option, is_whole
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.rewards.trained import TrainedReward
from lit_rlhf.types import Text, asked

Layout = Literal["auto", "chat", "text"]


@dataclass(frozen=True)
class Scored:
    """Scores of a comparison's answers; higher is better.

    Attributes:
        total: (K,) float32, on the CPU.
        members: (M, K) of an ensemble, whose mean is the total.
        favor: How far what is shown first was favored for its place, where answers are seen beside each other.
    """

    total: Tensor
    members: Tensor | None = None
    favor: float | None = None


class Scorer(ABC):
    """Scores the answers of comparisons.

    Attributes:
        name: What reports call it.
        probabilistic: Whether the sigmoid of a difference of scores is meant as a probability.
        fitted_pairs: Which pairs its temperature was fitted on, as `sketch_pairs` writes them; "" where it has none.
    """

    name: str
    probabilistic: bool = True
    fitted_pairs: str = ""

    @abstractmethod
    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored | InvalidRowError]:
        """Scores of each comparison's answers, in order; or why they could not be scored.

        Args:
            comparisons: What to score.
            tell: Is told how many are done.
        """


class ModelScorer(Scorer):
    """A reward model: an export, a checkpoint, or a sequence classifier with one label.

    Prompts are written as those that it was trained on, where it says so. Otherwise plain text becomes a chat where its
    tokenizer has a chat template. All answers of a prompt are scored in one row, rows of similar length together.

    Args:
        backbone: Of the reward model.
        name: What reports call it.
        layout: As chats, or text as it stands. auto: as said above.
        learned: How the prompts that it was trained on were written.
        batch_tokens: Most tokens at a time, padding included; a single prompt with its answers may exceed it.
        heads: Names of its heads.
        reward: What scores of these heads, on the last axis, come to. None: their mean, as of an ensemble.

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
        heads: Sequence[str] = ("reward",),
        reward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_option(is_whole(batch_tokens, 1), self, "batch_tokens", batch_tokens, "1 or more")
        self.backbone = backbone
        self.heads, self.reward = tuple(heads), reward
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
        trained = TrainedReward.read(path, base, ensemble=True)
        backbone = trained.load({"dtype": dtype, "trust_remote_code": trust_remote_code})
        backbone = backbone.to(default_device())
        made = cls(backbone, path, layout, trained.prompts(), batch_tokens, trained.heads)
        made.fitted_pairs = trained.fitted_pairs()
        return made

    @torch.no_grad()
    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored | InvalidRowError]:
        """Scores by the model's head or heads, at each answer's last token."""
        found: list[Scored | InvalidRowError] = [_NOT_SCORED] * len(comparisons)
        records: dict[int, Record] = {}
        for place, comparison in enumerate(comparisons):
            try:
                records[place] = self._write(comparison)
            except InvalidRowError as error:
                found[place] = error
        rows: dict[int, Encoded] = {}
        for place, row in zip(records, self._encoder.encode([*records.values()]), strict=True):
            if isinstance(row, InvalidRowError):
                found[place] = row
            elif (problem := self._problem(row)) is not None:
                found[place] = problem
            else:
                rows[place] = row
        done, device = len(comparisons) - len(rows), self.backbone.device
        tell(done)
        with evaluating(self.backbone):
            for part in self._batches(rows):
                own = [rows[place] for place in part]
                batch = self._collator.layout(
                    [{"prompt_ids": row.prompt, "completion_ids": row.completions} for row in own]
                )
                batch, widest = move_data_to_device(batch, device), len(own[0].completions)
                out = self.backbone(batch, num_branches=widest, role="reward", scores=self.heads)
                scores = asked(out.scores).view(len(part), widest, -1).float().cpu()  # (B, K, M)
                ensemble = len(self.heads) > 1 and self.reward is None
                for place, line in zip(part, scores, strict=True):
                    total = line.mean(-1) if self.reward is None else self.reward(line)
                    found[place] = Scored(total, line.T if ensemble else None)
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

    def _problem(self, row: Encoded) -> InvalidRowError | None:
        context = self.backbone.context_length
        longest = len(row.prompt) + max(map(len, row.completions))
        if context is None or longest <= context:
            return None
        told = f"{longest} tokens, it reads {context}"
        return InvalidRowError("longer than the model reads", told)

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


_NOT_SCORED = InvalidRowError("not scored", "")


def short_names(names: Sequence[str]) -> list[str]:
    """What tells several paths apart: they without the parts that all begin or end with.

    Example:
        >>> short_names(["runs/a/export", "runs/b/export"]), short_names(["m", "m"])
        (['a', 'b'], ['m', 'm (2)'])
    """
    parts = [Path(name).parts for name in names]
    ahead, behind = (
        len([*takewhile(lambda each: len(set(each)) == 1, zip(*lines, strict=False))])
        for lines in (parts, [each[::-1] for each in parts])
    )
    short = ["/".join(each[ahead : len(each) - behind]) for each in parts]
    if not all(short):
        short = list(names)
    seen: Counter[str] = Counter()
    for place, name in enumerate(short):
        seen[name] += 1
        short[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return short


def disagreements(
    models: Sequence[ModelScorer], pairs: Sequence[tuple[Text, Text, Text]]
) -> list[float | None]:
    """How far the members of an ensemble disagree on each pair: the deviation of its margin, in units of the scores.

    Members are the heads of a model trained with `HeadEnsemble`, or models of their own, such as those of several
    seeds, which must be on one scale.

    Args:
        models: One of several heads, or several.
        pairs: Prompt, an answer, and another.

    Returns:
        None of a pair that one of them can't score, as it is longer than it reads.

    Raises:
        ConfigurationError: Only one member, with whom nobody disagrees.
    """
    if sum(len(model.heads) for model in models) < 2:
        raise ConfigurationError(
            "One reward model has nobody to disagree with: give the checkpoint of one that was trained with "
            "HeadEnsemble (an export holds the mean of its members alone), or two and more models."
        )
    comparisons = [Comparison(prompt, (a, b), (0.0, 0.0)) for prompt, a, b in pairs]
    found: list[float | None] = []
    for scored in zip(*(model.score(comparisons) for model in models), strict=True):
        members = [
            each.total[None] if each.members is None else each.members
            for each in scored
            if not isinstance(each, InvalidRowError)
        ]
        known = len(members) == len(scored)
        found.append(float(margin_deviation(torch.cat(members))) if known else None)
    return found
