"""Which labels, which loss and how many models a reward model of film reviews is best made of.

    python -m benchmarks.human_sentiment.prepare
    python -m benchmarks.human_sentiment.recipes --frozen 0 1 2 --seeds 0 1 2 --whole 0 1 2

Each arm is `reward.yaml` with another loss or other rows, cut short: of a seed all arms learn from the same sentences
of the same lists, as many a step, from the same initial head and adapter. `--whole` runs `reward.yaml` in all its steps
from these seeds too. A run is in `<root>/recipes/<arm>-<lists>-<seed>`, with its scores of all held-out sentences in
`scores.json`; one that is there isn't run again. `--frozen` fits a head on frozen states by each arm, which takes
seconds once the states are there: each seed learns from another half of the lists. Writes
`<root>/recipes/recipes.json`.
"""

import argparse
import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.human_sentiment.frozen import States, fit_frozen
from benchmarks.human_sentiment.labelled import Pairs
from benchmarks.human_sentiment.measures import INITIAL
from benchmarks.human_sentiment.prepare import write_jsonl
from benchmarks.human_sentiment.raters import read_pairs
from benchmarks.human_sentiment.recipe_arms import ARMS, FIRST_ROUND, USED, command, whole_options
from benchmarks.human_sentiment.recipe_numbers import OTHERS, Held, Scores, domains, shown, summary
from benchmarks.human_sentiment.rows import PREFIX
from lit_rlhf.cli import main as lit_rlhf
from lit_rlhf.files import read_lines, write_text
from lit_rlhf.models import load_reward_model
from lit_rlhf.rewards.model import score_rows
from lit_rlhf.rewards.retokenize import TextReader, token_rows

WHOLE = "whole"


def score(export: Path, base: Path, texts: Sequence[str]) -> dict[str, float]:
    """A reward model's scores of sentences."""
    backbone = load_reward_model(export, dtype="auto", base=str(base))
    reader = TextReader(backbone.tokenizer)
    prompt, tails = reader.read(
        PREFIX, [f" {text}" for text in texts], [True] * len(texts), rendered=False
    )
    rows = token_rows([prompt] * len(texts), tails, torch.device("cpu"))
    found = score_rows(backbone, rows, "reward", batch_tokens=2048, path=str(export))
    return dict(zip(texts, found[:, 0].tolist(), strict=True))


def run_arm(name: str, seed: int, root: Path, lists: Pairs, count: int) -> Path:
    """Train one arm from a seed, unless its export is there; returns the directory."""
    directory = root / "recipes" / f"{name.replace(', ', '-')}-{count}-{seed}"
    if not (directory / "export").exists():
        arm, drawn = ARMS[name], random.Random(seed).sample(lists[:USED], count)
        write_jsonl(directory / "rows.jsonl", arm.rows(drawn))
        lit_rlhf(command(root, directory, arm.options(directory, seed, count)))
    return directory


def run_whole(seed: int, root: Path) -> Path:
    """Train in all steps of `reward.yaml` from a seed, likewise, from the last checkpoint where there is one."""
    directory = root / "recipes" / f"{WHOLE}-{seed}"
    if not (directory / "export").exists():
        begun = any((directory / "checkpoints").glob("*.ckpt"))
        words = command(root, directory, whole_options(root, seed))
        lit_rlhf([*words, *(["--ckpt_path", "last"] if begun else [])])
    return directory


def scores_of(directory: Path, root: Path, held: Held, names: Sequence[str]) -> dict[str, float]:
    """Scores of all sentences of these domains and of the unseen lists; those that are in a file are not made again."""
    file = directory / "scores.json"
    known: dict[str, float] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    missing = [text for text in held.texts(names) if text not in known]
    if missing:
        known |= score(directory / "export", root / INITIAL, missing)
        write_text(file, json.dumps(known, ensure_ascii=False) + "\n", "The scores")
    return known


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Reward models by several recipes.")
    parser.add_argument("--root", type=Path, default=Path("runs/human_sentiment"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the arms")
    parser.add_argument("--lists", type=int, default=128, help="that an arm learns from")
    parser.add_argument("--whole", type=int, nargs="*", default=[], help="seeds of reward.yaml")
    parser.add_argument("--frozen", type=int, nargs="*", default=[], help="seeds of frozen arms")
    parser.add_argument("--frozen-lists", type=int, default=400, help="of which each has half")
    parser.add_argument("--others", nargs="*", choices=OTHERS, default=[*OTHERS], metavar="DOMAIN")
    parser.add_argument("--other", type=int, default=1000, help="pairs of each other domain")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    root: Path = options.root
    lists = read_lines(root / "data" / "lists_train.jsonl")
    others = {name: read_pairs(root, f"pairs_{name}")[: options.other] for name in options.others}
    held = Held({"heldout": read_pairs(root, "pairs_heldout")} | others, lists[USED:FIRST_ROUND])
    frozen: dict[str, dict[int, Scores]] = {}
    trained: dict[str, dict[int, Scores]] = {}
    states = States(root / INITIAL, root / "recipes" / "states.pt")
    for name, seed in product(options.arms, options.frozen):
        scored = fit_frozen(name, seed, states, lists[: options.frozen_lists], held.unseen)
        frozen.setdefault(name, {})[seed] = scored(held.texts(held.pairs))
    for seed, name in product(options.seeds, options.arms):
        directory = run_arm(name, seed, root, lists, options.lists)
        trained.setdefault(name, {})[seed] = scores_of(directory, root, held, ["heldout"])
    for seed in options.whole:
        scores = scores_of(run_whole(seed, root), root, held, [*held.pairs])
        trained.setdefault(WHOLE, {})[seed] = scores
    found = {"frozen": summary(frozen, held), "trained": summary(trained, held)}
    text = json.dumps({"options": vars(options), **found}, indent=2, default=str) + "\n"
    write_text(root / "recipes" / "recipes.json", text, "The results")
    for name, each in found.items():
        if each:
            print(f"\n{name}\n\n{shown(each)}\n\n{domains(each)}")


if __name__ == "__main__":
    main()
