"""What a reward model learns from a local model's labels, and from people's, of the same pairs of film reviews.

    python -m benchmarks.human_sentiment.prepare
    python -m benchmarks.human_sentiment.labelled --pairs 400

Each label set is of the same pairs of training sentences: raters' (soft, by the difference of their means), those of
SmolLM2-135M-Instruct as a judge asked in both orders, and of vaderSentiment's rules. A reward model with LoRA learns
from each in the same steps; all are held against people on held-out pairs. Writes `<root>/labelled/labelled.json`.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from benchmarks.human_sentiment.judge import sentiment
from benchmarks.human_sentiment.prepare import write_jsonl
from benchmarks.quiet import quiet_trainer
from lit_rlhf.data import ExplicitPrompt, FileSource, PreferenceDataModule, RowsSource
from lit_rlhf.evaluation import ModelScorer, evaluate_reward, read_comparisons
from lit_rlhf.feedback import Labelling, label_pairs, read_labelled_pairs
from lit_rlhf.judges import LocalJudge, PairwiseJudge
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.modules import RewardModelModule

TEMPLATE = """Film review A:{{ first }}
Film review B:{{ second }}
Which of the two film reviews is more positive? Answer A or B."""
SCALE = 0.82
"""Of a difference of mean ratings, in the sigmoid that fits how often raters prefer; see README."""
_BATCH = 8


def pairs_of(lists: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Neighbours of each list as pairs, the better one first, with the share of raters that prefers it."""
    found = []
    for row in lists:
        rated = list(zip(row["completions"], row["scores"], strict=True))
        for one, other in zip(rated[::2], rated[1::2], strict=False):
            (chosen, high), (rejected, low) = sorted((one, other), key=lambda each: -each[1])
            p = 1 / (1 + math.exp((low - high) / SCALE))
            pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
            if high > low:
                found.append({**pair, "p_chosen": p})
    return found[:count]


def by_rules(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs as vaderSentiment orders them; ties are left out."""
    rows = []
    for pair in pairs:
        texts = [pair["chosen"], pair["rejected"]]
        one, other = sentiment([pair["prompt"]] * 2, texts)
        if one != other:
            chosen, rejected = texts if one > other else texts[::-1]
            rows.append({"prompt": pair["prompt"], "chosen": chosen, "rejected": rejected})
    return rows


def by_judge(root: Path, pairs: Sequence[Mapping[str, Any]]) -> Labelling:
    """The same pairs as the model says, asked in both orders; what was answered is kept."""
    judge = LocalJudge(
        ModelSpec(name=str(root / "model"), dtype="bfloat16"),
        template=TEMPLATE,
        words={"A": 1, "B": 0},
        cache=root / "labelled" / "answers",
    )
    read, _ = read_labelled_pairs(RowsSource([dict(pair) for pair in pairs]), ExplicitPrompt())
    return label_pairs(read, PairwiseJudge(judge), lambda done: print("judged", done, flush=True))


def agreement(rows: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> float:
    """Share of labelled pairs whose better one is the raters'."""
    right = {(pair["chosen"], pair["rejected"]) for pair in pairs}
    return sum((row["chosen"], row["rejected"]) in right for row in rows) / len(rows)


def learned(root: Path, rows: list[dict[str, Any]], heldout: Path, epochs: int) -> dict[str, Any]:
    """A reward model's accuracy on held-out pairs, after learning from these."""
    spec = ModelSpec(name=str(root / "model"), dtype="bfloat16", lora=LoraSpec(rank=16, alpha=32))
    module = RewardModelModule(spec, optimizer=partial(AdamW, lr=6e-4, weight_decay=0.0))
    data = PreferenceDataModule(
        RowsSource(rows),
        tokenizer=str(root / "model"),
        format=ExplicitPrompt(),
        batch_size=_BATCH,
        cache_dir=str(root / "cache"),
    )
    quiet_trainer(max_epochs=epochs, gradient_clip_val=1.0).fit(module, datamodule=data)
    scorer = ModelScorer(module.backbone, "learned", "text")
    found = evaluate_reward(scorer, read_comparisons(FileSource(str(heldout))), perturbed=0)
    accuracy = found.accuracy
    return {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Reward models from several labellers.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--heldout", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    root: Path = options.root
    lines = (root / "data" / "lists_train.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = pairs_of([json.loads(line) for line in lines[: options.pairs]], options.pairs)
    place = root / "labelled"
    rows = (root / "data" / "pairs_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    held = [json.loads(row) for row in rows[: options.heldout]]
    write_jsonl(place / "heldout.jsonl", held)
    judged = by_judge(root, pairs)
    print(judged, flush=True)
    labels = {
        "raters": pairs,
        "rules": by_rules(pairs),
        "judge": [each.row() for each in judged.judged],
    }
    results: dict[str, Any] = {"judge": judged.numbers()}
    for name, given in labels.items():
        told = {"pairs": len(given), "agreement": agreement(given, pairs)}
        found = learned(root, given, place / "heldout.jsonl", options.epochs)
        results[name] = results.get(name, {}) | told | found
        print(name, results[name], flush=True)
    text = json.dumps(results, indent=2) + "\n"
    (place / "labelled.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
