"""What is measured of a policy and of a reward model, by the library's own engine, rewards and metrics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.human_sentiment.rows import PREFIX
from lit_rlhf.data import (
    ExplicitPrompt,
    FileSource,
    PreferenceDataModule,
    PromptDataModule,
    RowsSource,
)
from lit_rlhf.demo.results import distinct_n
from lit_rlhf.functional.branches import pack_branches
from lit_rlhf.models import (
    Backbone,
    ModelSpec,
    evaluating,
    load_checkpoint_backbone,
    load_reward_model,
)
from lit_rlhf.models.specs import DTypeName, DTypeOption
from lit_rlhf.rewards import ModelReward, Reward
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.seeding import sample_seeds
from lit_rlhf.types import BranchedBatch, Completions, PromptBatch, Prompts, asked

Samples = list[dict[str, Any]]
INITIAL = Path("sft", "export")
"""The initial policy, under the root of the runs."""


class Judge(Protocol):
    """The gold judge: `vaderSentiment.SentimentIntensityAnalyzer`."""

    def polarity_scores(self, text: str) -> dict[str, float]:
        """`compound` is the text's sentiment from -1 to 1."""
        ...


@dataclass(frozen=True)
class Measurement:
    """How policies are sampled.

    Attributes:
        root: Directory of the runs, as `prepare.py` laid it out.
        prompts: Held-out prompts to complete.
        batch_size: Completions sampled at a time.
        max_new_tokens: Longest completion.
        seed: The same seed draws the same uniforms for each policy, which makes policies comparable.
        file: Which of the files in `data` holds the prompts.
        purpose: Other samples are drawn for another one.
    """

    root: Path
    prompts: int = 256
    batch_size: int = 64
    max_new_tokens: int = 32
    seed: int = 0
    file: str = "prompts_heldout"
    purpose: str = "evaluation"

    def sample(
        self,
        policy: Backbone,
        reference: Backbone,
        rewards: Mapping[str, Reward],
        num_samples: int = 1,
    ) -> Samples:
        """Complete the prompts; each sample with its scores, length and log-ratio to the reference.

        Args:
            policy: Whose samples.
            reference: The initial policy.
            rewards: Attached reward models by name.
            num_samples: Completions of each prompt, which are neighbours in the result.
        """
        parts = self.batches(policy, reference, rewards, num_samples)
        return list(chain.from_iterable(parts))[: self.prompts * num_samples]

    def batches(
        self,
        policy: Backbone,
        reference: Backbone,
        rewards: Mapping[str, Reward],
        num_samples: int = 1,
    ) -> Iterator[Samples]:
        """The same, a batch at a time, until there are as many."""
        data = PromptDataModule(
            test=FileSource(str(self.root / "data" / f"{self.file}.jsonl")),
            tokenizer=policy.tokenizer,
            batch_size=max(self.batch_size // num_samples, 1),
            cache_dir=str(self.root / "cache"),
        )
        data.prepare_data()
        data.setup("test")
        done = 0
        for batch in data.test_dataloader():
            yield self._sample(batch, policy, reference, rewards, num_samples)
            done += len(batch["index"])
            if done >= self.prompts:
                break

    def _sample(
        self,
        batch: PromptBatch,
        policy: Backbone,
        reference: Backbone,
        rewards: Mapping[str, Reward],
        num_samples: int,
    ) -> Samples:
        given = Prompts.of(batch)
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        which = (batch["index"][:, None] * num_samples + torch.arange(num_samples)).flatten()
        seeds = sample_seeds(self.seed, 0, self.purpose, which)
        request = RolloutRequest(given, sampling, seeds, num_samples)
        found = NativeEngine().generate(policy, request)
        prompts = [
            text for text in _texts(policy, given.ids, given.mask) for _ in range(num_samples)
        ]
        responses = _texts(policy, found.tokens, found.mask)
        completions = Completions(
            given.ids, given.mask, found.tokens, found.mask, found.finished, prompts, responses
        )
        columns: dict[str, list[Any]] = {
            "prompt": prompts,
            "response": responses,
            "log_ratio": _log_ratios(policy, reference, completions).tolist(),
            "tokens": found.mask.sum(-1).tolist(),
            "finished": found.finished.tolist(),
        }
        columns |= {
            name: reward.score(completions).total.tolist() for name, reward in rewards.items()
        }
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]


def attached_reward(
    path: Path,
    backbone: Backbone,
    root: Path,
    dtype: DTypeOption = "auto",
    *,
    normalize: bool = True,
) -> ModelReward:
    """A reward model beside a policy; of an adapter, on the initial policy's base."""
    base = str(root / INITIAL) if (path / "adapter_config.json").is_file() else None
    reward = ModelReward(str(path), share_base=False, normalize=normalize, dtype=dtype, base=base)
    reward.attach(backbone)
    return reward


def judge_samples(samples: Samples, judge: Judge) -> None:
    """Add the judge's opinion of the whole sentence (`gold`) and of what the policy wrote of it (`gold_response`)."""
    for row in samples:
        sentence = (row["prompt"] + row["response"]).removeprefix(PREFIX).strip()
        row["gold"] = judge.polarity_scores(sentence)["compound"]
        row["gold_response"] = judge.polarity_scores(row["response"].strip())["compound"]


def best_of_n(samples: Samples, group: int, n: int) -> Samples:
    """The best by the reward of the first n samples of each prompt; prompts have `group` samples, which are neighbours.

    Example:
        >>> best_of_n(
        ...     [{"reward": 1.0}, {"reward": 2.0}, {"reward": 4.0}, {"reward": 3.0}], group=2, n=2
        ... )
        [{'reward': 2.0}, {'reward': 4.0}]
    """
    return [
        max(samples[i : i + n], key=lambda row: row["reward"])
        for i in range(0, len(samples), group)
    ]


def summarize(samples: Samples, reward_names: Sequence[str]) -> dict[str, float]:
    """Means over samples, with the standard error of gold and KL."""
    summary = {
        "samples": float(len(samples)),
        "gold": fmean(row["gold"] for row in samples),
        "gold_stderr": standard_error([row["gold"] for row in samples]),
        "gold_response": fmean(row["gold_response"] for row in samples),
        "gold_positive": fmean(row["gold"] > 0.05 for row in samples),  # the judge's own threshold
        "kl": fmean(row["log_ratio"] for row in samples),
        "kl_stderr": standard_error([row["log_ratio"] for row in samples]),
        "distinct_2": distinct_n((row["response"] for row in samples), 2),
        "tokens": fmean(row["tokens"] for row in samples),
        "finished": fmean(row["finished"] for row in samples),
    }
    return summary | {name: fmean(row[name] for row in samples) for name in reward_names}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean.

    Example:
        >>> standard_error([1.0, 3.0])
        1.0
    """
    return float(stdev(values) / len(values) ** 0.5) if len(values) > 1 else 0.0


def accuracy_by_difference(
    margins: Sequence[float],
    differences: Sequence[float],
    thresholds: Sequence[float] = (0.0, 0.5, 1.0),
) -> dict[str, dict[str, float]]:
    """How often the higher mean rating gets the higher score, among pairs whose means differ by at least a threshold.

    Args:
        margins: Score of the better-rated sentence minus that of the other.
        differences: Difference of mean ratings, 0 or more; pairs of equal means have no better one and are left out.
        thresholds: See above.

    Example:
        >>> accuracy_by_difference([1.0, -1.0, 2.0], [0.1, 0.2, 0.7], [0.0, 0.5])["0.5"]
        {'accuracy': 1.0, 'pairs': 1}
    """
    table = {}
    for threshold in thresholds:
        hits = [
            (margin > 0) + 0.5 * (margin == 0)
            for margin, difference in zip(margins, differences, strict=True)
            if difference >= threshold and difference > 0
        ]
        table[str(threshold)] = {
            "accuracy": fmean(hits) if hits else float("nan"),
            "pairs": len(hits),
        }
    return table


def reward_margins(
    path: Path, root: Path, pairs: str = "pairs_heldout", most: int | None = None
) -> tuple[list[float], list[float]]:
    """Score differences of a reward model on pairs, and the differences of the mean ratings.

    Args:
        path: The reward model's export.
        root: Directory of the runs.
        pairs: Which of the files in `data`.
        most: So many of its pairs, from the first; None: all.
    """
    backbone = load_reward_model(path, dtype="auto", base=str(root / INITIAL))
    file = FileSource(str(root / "data" / f"{pairs}.jsonl"))
    source = RowsSource([dict(row) for row in islice(file.load(), most)])
    data = PreferenceDataModule(
        test=source,
        tokenizer=backbone.tokenizer,
        format=ExplicitPrompt(margin=None),
        invalid="error",
        batch_size=32,
        cache_dir=str(root / "cache"),
    )
    data.prepare_data()
    data.setup("test")
    margins: dict[int, float] = {}
    for batch in data.test_dataloader():
        with torch.no_grad(), evaluating(backbone):
            out = backbone(batch, num_branches=2, role="reward", scores="reward")
        better, worse = out.scores.view(-1, 2).unbind(-1)
        margins.update(zip(batch["index"].tolist(), (better - worse).tolist(), strict=True))
    differences = [float(row["margin"]) for row in source.load()]
    return [margins[i] for i in range(len(differences))], differences


def load_policy(root: Path, name: str, dtype: DTypeName | None = None) -> Backbone:
    """A policy by its place under the root: a merged export, a checkpoint, or a directory of checkpoints (the newest).

    Args:
        root: Directory of the runs.
        name: The place.
        dtype: Of the base's weights; default: that of training, of exports what the machine multiplies.

    Raises:
        FileNotFoundError: There is none.
    """
    path = root / name
    if (path / "config.json").is_file():
        spec = ModelSpec(name=str(path), dtype=dtype or "auto")
        return Backbone.load(spec, trainable=False).eval()
    checkpoints = [path]
    if path.suffix != ".ckpt":
        checkpoints = sorted(path.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not checkpoints:
        raise FileNotFoundError(
            f"{path} is neither a checkpoint nor a directory with an export or checkpoints of a policy."
        )
    changes = {"dtype": dtype} if dtype is not None else {}
    return load_checkpoint_backbone(checkpoints[-1], name=str(root / INITIAL), **changes)


def _texts(backbone: Backbone, ids: Tensor, mask: Tensor) -> list[str]:
    return [
        str(backbone.tokenizer.decode(row[kept], skip_special_tokens=True))
        for row, kept in zip(ids, mask, strict=True)
    ]


def _log_ratios(policy: Backbone, reference: Backbone, completions: Completions) -> Tensor:
    """(N,): log policy(y) - log reference(y)."""
    if policy is reference:
        return torch.zeros(len(completions.tokens))
    prompts = completions.prompt_ids, completions.prompt_mask
    responses = completions.tokens, completions.response_mask
    packed = pack_branches(*prompts, *responses, policy.pad_token_id)
    rows = BranchedBatch(
        input_ids=packed.input_ids, branch_ids=packed.branch_ids, position_ids=packed.position_ids
    )
    branches = len(completions.tokens) // len(completions.prompt_ids)
    ours, theirs = (_sequence_logprobs(each, rows, branches) for each in (policy, reference))
    return ours - theirs


def _sequence_logprobs(backbone: Backbone, rows: BranchedBatch, num_branches: int) -> Tensor:
    with torch.no_grad(), evaluating(backbone):
        out = backbone(rows, num_branches=num_branches, role="policy", logprobs=True)
    return asked(out.logprobs).sum(-1)
