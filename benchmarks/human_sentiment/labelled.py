"""What a reward model learns from a local model's labels, and from people's, of the same pairs of film reviews.

    python -m benchmarks.human_sentiment.prepare
    python -m benchmarks.human_sentiment.labelled --pairs 400 --seeds 0 1 2

Each label set is of the same pairs of training sentences: raters' (soft, by the difference of their means), those of
SmolLM2-135M-Instruct as a judge, and of vaderSentiment's rules. The model is asked in two ways: which of two reviews is
more positive, A or B, in both orders; and of each review alone how the sentence about it goes on, good or bad. A reward
model with LoRA learns from each set in the same steps; it and who labelled are held against people on held-out pairs.
Writes `<root>/labelled/labelled.json`; what stands there in the same setting isn't done again.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from torch.optim import AdamW

from benchmarks.human_sentiment.judge import sentiment
from benchmarks.human_sentiment.measures import accuracy_by_difference
from benchmarks.markdown import spelled, table
from benchmarks.quiet import quiet_trainer
from lit_rlhf.data import ExplicitPrompt, PreferenceDataModule, RowsSource
from lit_rlhf.evaluation import ModelScorer, Scored, read_comparisons
from lit_rlhf.feedback import label_pairs, read_labelled_pairs
from lit_rlhf.files import read_lines, write_text
from lit_rlhf.judges import LocalJudge, PairwiseJudge
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import RewardModelModule

COMPARES: dict[str, Any] = {
    "template": """Film review A:{{ first }}
Film review B:{{ second }}
Which of the two film reviews is more positive? Answer A or B.""",
    "words": {"A": 1, "B": 0},
}
COMPLETES: dict[str, Any] = {
    "template": """Film review:{{ response }}
What does the reviewer think of the film?""",
    "lead": "The reviewer thinks that the film is",
    "words": {"good": 1, "bad": 0},
}
SCALE = 0.82
"""Of a difference of mean ratings, in the sigmoid that fits how often raters prefer; see README."""
_BATCH = 8
Pairs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Labels:
    """What somebody says of pairs.

    Attributes:
        margins: Of each pair how much better the first is than the second; 0 is a tie.
        soft: Whether the sigmoid of a margin is a probability.
        numbers: What else is known of them.
    """

    margins: list[float]
    soft: bool = False
    numbers: Mapping[str, float | None] | None = None

    def rows(self, pairs: Pairs) -> list[dict[str, Any]]:
        """Preferences to learn from; ties are left out."""
        rows = []
        for pair, margin in zip(pairs, self.margins, strict=True):
            texts = [pair["chosen"], pair["rejected"]]
            chosen, rejected = texts if margin > 0 else texts[::-1]
            row = {"prompt": pair["prompt"], "chosen": chosen, "rejected": rejected}
            soft = {"p_chosen": 1 / (1 + math.exp(-abs(margin)))} if self.soft else {}
            if margin:
                rows.append(row | soft)
        return rows

    def agreement(self, pairs: Pairs) -> dict[str, float]:
        """Share of pairs whose better one is the raters', by the least difference of their means; ties count half."""
        differences = [pair["margin"] for pair in pairs]
        found = accuracy_by_difference(self.margins, differences, (0.0, 0.5))
        return {difference: each["accuracy"] for difference, each in found.items()}


def pairs_of(lists: Pairs, count: int) -> list[dict[str, Any]]:
    """Neighbours of each list as pairs, the better one first, with the difference of their mean ratings."""
    found = []
    for row in lists:
        rated = list(zip(row["completions"], row["scores"], strict=True))
        for one, other in zip(rated[::2], rated[1::2], strict=False):
            (chosen, high), (rejected, low) = sorted((one, other), key=lambda each: -each[1])
            pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
            if high > low:
                found.append({**pair, "margin": high - low})
    return found[:count]


def by_raters(pairs: Pairs) -> Labels:
    """People's."""
    return Labels([pair["margin"] / SCALE for pair in pairs], soft=True)


def by_scores(score: Callable[[list[str], list[str]], Sequence[float]], pairs: Pairs) -> Labels:
    """Of somebody who scores texts, given their prompts."""
    texts = [pair[name] for pair in pairs for name in ("chosen", "rejected")]
    values = score([pair["prompt"] for pair in pairs for _ in range(2)], texts)
    return Labels([one - other for one, other in zip(values[::2], values[1::2], strict=True)])


def by_comparing(judge: LocalJudge, pairs: Pairs) -> Labels:
    """A judge's that is asked in both orders."""
    texts = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    read, _ = read_labelled_pairs(RowsSource(texts), ExplicitPrompt())
    found = label_pairs(read, PairwiseJudge(judge))
    p = [each.opinion.p_first for each in found.judged]
    return Labels([math.log(each / (1 - each)) for each in p], True, found.numbers())


def labellers(root: Path) -> dict[str, Callable[[Pairs], Labels]]:
    """Who labels, by name; the judges' answers are kept."""
    model = ModelSpec(name=str(root / "model"), dtype="auto")
    cache = root / "labelled" / "answers"
    compares = LocalJudge(model, cache=cache, **COMPARES)
    completes = LocalJudge(model, cache=cache, **COMPLETES)

    def completed(prompts: list[str], texts: list[str]) -> list[float]:
        cases = zip(prompts, texts, strict=True)
        said = completes.judge([{"prompt": prompt, "response": text} for prompt, text in cases])
        return [value for value in said if value is not None]  # a failure raises

    return {
        "raters": by_raters,
        "good or bad": partial(by_scores, completed),
        "A or B": partial(by_comparing, compares),
        "rules": partial(by_scores, sentiment),
    }


def learned(root: Path, rows: list[dict[str, Any]], held: Pairs, seed: int) -> Labels:
    """What a reward model says of held-out pairs, after one pass over these."""
    seed_everything(seed, verbose=False)
    spec = ModelSpec(name=str(root / "model"), dtype="auto", lora=LoraSpec(rank=16, alpha=32))
    module = RewardModelModule(spec, optimizer=partial(AdamW, lr=6e-4, weight_decay=0.0), seed=seed)
    data = PreferenceDataModule(
        RowsSource(rows),
        tokenizer=str(root / "model"),
        format=ExplicitPrompt(),
        batch_size=_BATCH,
        seed=seed,
        cache_dir=str(root / "cache"),
    )
    quiet_trainer(gradient_clip_val=1.0).fit(module, datamodule=data)
    scorer = ModelScorer(module.backbone, "learned", "text")
    texts = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in held]
    found = scorer.score(read_comparisons(RowsSource(texts)).items)
    totals = [each.total for each in found if isinstance(each, Scored)]
    return Labels([float(one - other) for one, other in totals])


def shown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: who labels, and what is learned from that, mean and deviation over seeds."""
    rows = []
    for name, found in results.items():
        cells = [f"{found['labels']['0.0']:.3f}", f"{found['heldout']['0.0']:.3f}"]
        for difference in ("0.0", "0.5"):
            values = [each[difference] for each in found["learned"].values()]
            cells.append(spelled(values, ".3f") if values else "")
        rows.append([name, *cells])
    heads = ["labels of", "agree with raters", "themselves, held-out", "learned, held-out"]
    return table([*heads, "at a difference of 0.5"], rows)


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Reward models from several labellers.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--heldout", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--learn", nargs="+", metavar="NAME", help="from whose labels; default: all"
    )
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    root: Path = options.root
    lists, held = (
        read_lines(root / "data" / f"{name}.jsonl") for name in ("lists_train", "pairs_heldout")
    )
    pairs, held = pairs_of(lists, options.pairs), held[: options.heldout]
    file = root / "labelled" / "labelled.json"
    setting = {"pairs": options.pairs, "heldout": options.heldout}
    before = json.loads(file.read_text("utf-8")) if file.exists() else {}
    results = before["results"] if before.get("setting") == setting else {}

    def keep() -> None:
        text = json.dumps({"setting": setting, "results": results}, indent=2) + "\n"
        write_text(file, text, "The results")

    rows = {}
    for name, label in labellers(root).items():
        labels, own = label(pairs), label(held)
        rows[name] = labels.rows(pairs)
        told = {"labels": labels.agreement(pairs), "heldout": own.agreement(held)}
        more = {"labelled": labels.numbers, "judged_heldout": own.numbers} if labels.numbers else {}
        results[name] = {"learned": {}} | results.get(name, {}) | told | more
        print(name, len(rows[name]), told, more, flush=True)
        keep()
    for seed in options.seeds:
        for name in options.learn or rows:
            known = results[name]["learned"]
            if str(seed) not in known:
                known[str(seed)] = learned(root, rows[name], held, seed).agreement(held)
                print("seed", seed, name, known[str(seed)], flush=True)
                keep()
    print(shown(results))


if __name__ == "__main__":
    main()
