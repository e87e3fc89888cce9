"""How fast rows become tokens: microseconds a row and memory of a first start, seconds of a second one.

    taskset -c 0 python benchmarks/data_load.py --pairs 100000 --long 20000

Beside it, what `datasets.map` takes for the tokenizer calls alone (prompt, prompt and chosen, prompt and rejected).
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import DemonstrationDataModule, FileSource, PreferenceDataModule


def words(rng: random.Random) -> list[str]:
    """A vocabulary whose words are used by Zipf's law."""
    return ["".join(rng.choices("abcdefghilmnoprstuw", k=rng.randint(2, 9))) for _ in range(5000)]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 8,000 tokens."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def write_rows(path: Path, count: int, make: Callable[[], dict[str, str]]) -> str:
    """Rows of JSONL, one after the other."""
    with path.open("w") as file:
        for _ in range(count):
            file.write(json.dumps(make()) + "\n")
    return str(path)


def timed(name: str, rows: int, make: Callable[[], Any]) -> None:
    """Time a first and a second start."""
    took = []
    for _ in range(2):
        start = time.perf_counter()
        module = make()
        module.prepare_data()
        module.setup("fit")
        took.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{name}: {rows} rows, {rows / took[0]:.0f} rows/s, {took[0] / rows * 1e6:.0f} us a row; second start "
        f"{took[1]:.2f} s; peak memory of the process {peak:.0f} MiB",
        flush=True,
    )


def plain_map(path: str, tokenizer: PreTrainedTokenizerFast, rows: int, cache: str) -> None:
    """What `datasets.map` takes for the calls of the tokenizer."""
    datasets.disable_progress_bars()

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = {"prompt": batch["prompt"]}
        for side in ("chosen", "rejected"):
            pairs = zip(batch["prompt"], batch[side], strict=True)
            texts[side] = [prompt + answer for prompt, answer in pairs]
        return {f"{k}_ids": tokenizer(v)["input_ids"] for k, v in texts.items()}

    start = time.perf_counter()
    data = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
    data.map(tokenize, batched=True, remove_columns=data.column_names)
    took = time.perf_counter() - start
    print(f"plain datasets.map, pairs: {took / rows * 1e6:.0f} us a row", flush=True)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000, help="short pairs")
    parser.add_argument("--long", type=int, default=20_000, help="long demonstrations")
    parser.add_argument("--plain", action="store_true", help="time plain datasets.map too")
    options = parser.parse_args()
    rng = random.Random(0)
    known = words(rng)
    weights = [1 / (rank + 1) for rank in range(len(known))]

    def text(count: int) -> str:
        return " ".join(rng.choices(known, weights, k=count))

    tokenizer = make_tokenizer([text(50) for _ in range(2000)])
    with tempfile.TemporaryDirectory() as place:
        pairs = write_rows(
            Path(place) / "pairs.jsonl",
            options.pairs,
            lambda: {"prompt": text(12) + "?", "chosen": " " + text(10), "rejected": " " + text(9)},
        )
        texts = write_rows(
            Path(place) / "long.jsonl",
            options.long,
            lambda: {"prompt": text(60) + "?", "completion": " " + text(150)},
        )
        common = {"tokenizer": tokenizer, "cache_dir": str(Path(place) / "cache")}
        timed("pairs", options.pairs, lambda: PreferenceDataModule(FileSource(pairs), **common))
        timed("long", options.long, lambda: DemonstrationDataModule(FileSource(texts), **common))
        if options.plain:
            plain_map(pairs, tokenizer, options.pairs, str(Path(place) / "datasets"))


if __name__ == "__main__":
    main()
