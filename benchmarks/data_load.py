"""How fast rows become tokens: microseconds a row and memory of a first start, seconds of a second one.

    taskset -c 0 python benchmarks/data_load.py --pairs 1000000 --long 200000 --times 3 --plain

A tenth of the rows comes first: where memory is flat in rows, the peak hardly grows after it. Beside it, with
`--plain`, what `datasets.map` takes for the tokenizer calls alone (prompt, and prompt with each answer).
"""

import argparse
import itertools
import json
import os
import random
import resource
import statistics
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

from lit_rlhf.data import (
    BranchedDataModule,
    DemonstrationDataModule,
    FileSource,
    PreferenceDataModule,
)


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


def timed(name: str, rows: int, make: Callable[[str], Any], place: str, times: int) -> None:
    """Time first starts, each with a cache of its own, and a second start after each."""
    first, worked, second = [], [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory(dir=place) as cache:
            for starts in (first, second):
                start, cpu = time.perf_counter(), time.process_time()
                module = make(cache)
                module.prepare_data()
                module.setup("fit")
                starts.append(time.perf_counter() - start)
                if starts is first:
                    worked.append((time.process_time() - cpu) / rows * 1e6)
            del module
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    a_row = [seconds / rows * 1e6 for seconds in first]
    print(
        f"{name}: {rows} rows, {_span(a_row, 0)} us a row ({_span(worked, 0)} us of CPU), second start "
        f"{_span(second, 2)} s; peak memory of the process so far {peak:.0f} MiB",
        flush=True,
    )


def _span(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def plain_map(
    name: str, path: str, tokenizer: PreTrainedTokenizerFast, rows: int, place: str
) -> None:
    """What `datasets.map` takes for the calls of the tokenizer."""
    datasets.disable_progress_bars()

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = {"prompt": batch["prompt"]}
        for side in batch.keys() - {"prompt"}:
            pairs = zip(batch["prompt"], batch[side], strict=True)
            texts[side] = [prompt + answer for prompt, answer in pairs]
        return {f"{k}_ids": tokenizer(v)["input_ids"] for k, v in texts.items()}

    start, cpu = time.perf_counter(), time.process_time()
    data = datasets.load_dataset("json", data_files=path, split="train", cache_dir=place)
    data.map(tokenize, batched=True, remove_columns=data.column_names)
    wall, worked = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"plain datasets.map, {name}: {wall / rows * 1e6:.0f} us a row "
        f"({worked / rows * 1e6:.0f} us of CPU)",
        flush=True,
    )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000, help="short pairs")
    parser.add_argument("--long", type=int, default=20_000, help="long demonstrations")
    parser.add_argument("--times", type=int, default=1, help="how often all rows are prepared")
    parser.add_argument("--plain", action="store_true", help="time plain datasets.map too")
    options = parser.parse_args()
    rng = random.Random(0)
    known = words(rng)
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(known))))

    def text(count: int) -> str:
        return " ".join(rng.choices(known, cum_weights=weights, k=count))

    tokenizer = make_tokenizer([text(50) for _ in range(2000)])
    kinds: dict[str, tuple[int, type[BranchedDataModule], Callable[[], dict[str, str]]]] = {
        "pairs": (
            options.pairs,
            PreferenceDataModule,
            lambda: {"prompt": text(12) + "?", "chosen": " " + text(10), "rejected": " " + text(9)},
        ),
        "long": (
            options.long,
            DemonstrationDataModule,
            lambda: {"prompt": text(60) + "?", "completion": " " + text(150)},
        ),
    }
    with tempfile.TemporaryDirectory() as place:
        for name, (rows, kind, make_row) in kinds.items():
            for count, times in ((rows // 10, 1), (rows, options.times)):
                path = write_rows(Path(place) / f"{name}.jsonl", count, make_row)

                def make(cache: str, path: str = path, kind: Any = kind) -> BranchedDataModule:
                    module: BranchedDataModule = kind(
                        FileSource(path), tokenizer=tokenizer, cache_dir=cache
                    )
                    return module

                timed(name, count, make, place, times)
            if options.plain:
                plain_map(name, path, tokenizer, rows, str(Path(place) / "datasets"))


if __name__ == "__main__":
    main()
