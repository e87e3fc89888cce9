"""How fast rows become tokens, beside plain `datasets.map` with the same tokenizer, and how much memory they take.

    taskset -c 0 python benchmarks/data_load.py --rows 20000 --times 3

Ours and the plain one take turns, each time with a cache of its own. Ours reads, recognises the format, checks,
tokenizes, writes and makes ready to train; the plain one loads the file and maps the calls of the tokenizer alone:
prompt, and prompt with each answer. `--batches 1000 --times 0` measures memory instead: anonymous memory beyond that
of the imports.
"""

import argparse
import itertools
import json
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lit_rlhf.data import (
    BranchedDataModule,
    DemonstrationDataModule,
    FileSource,
    PreferenceDataModule,
)

ROLES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
TEMPLATE = ROLES + "{% if add_generation_prompt %}<assistant>{% endif %}"
Texts = Callable[[int], str]


@dataclass(frozen=True)
class Workload:
    """Rows of one shape, and who reads them.

    Args:
        module: The DataModule.
        make: A row, of texts of so many words.
        answers: Its columns that hold answers.
    """

    module: type[BranchedDataModule]
    make: Callable[[Texts], dict[str, Any]]
    answers: tuple[str, ...]


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


PAIR = ("chosen", "rejected")
WORKLOADS = {
    "pairs": Workload(
        PreferenceDataModule,
        lambda text: {
            "prompt": f"{text(12)}?",
            "chosen": f" {text(10)}",
            "rejected": f" {text(9)}",
        },
        PAIR,
    ),
    "chats": Workload(
        PreferenceDataModule,
        lambda text: {
            "prompt": _turn("user", text(60)),
            "chosen": _turn("assistant", text(80)),
            "rejected": _turn("assistant", text(70)),
        },
        PAIR,
    ),
    "long": Workload(
        DemonstrationDataModule,
        lambda text: {"prompt": text(60) + "?", "completion": " " + text(150)},
        ("completion",),
    ),
}


def make_texts() -> Texts:
    """Texts of words that are used by Zipf's law."""
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefghilmnoprstuw", k=rng.randint(2, 9))) for _ in range(5000)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(known))))
    return lambda count: " ".join(rng.choices(known, cum_weights=weights, k=count))


def make_tokenizer(kind: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """BPE of 8,000 tokens, of bytes as from GPT-2 on, or of characters with spaces in words as in Llama 2."""
    core = Tokenizer(BPE())
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>", "<user>", "<assistant>"],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    made.chat_template = TEMPLATE
    return made


def begun(make: Callable[..., BranchedDataModule], cache: str) -> BranchedDataModule:
    """A DataModule, ready to train on."""
    module = make(cache_dir=cache)
    module.prepare_data()
    module.setup("fit")
    return module


def plain_map(
    path: str, tokenizer: PreTrainedTokenizerFast, answers: tuple[str, ...], place: str
) -> None:
    """`datasets.map` with the calls of the tokenizer."""

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
        chat = not isinstance(batch["prompt"][0], str)
        found = {}
        for name in ("prompt", *answers):
            added = batch[name] if name != "prompt" else [[] if chat else ""] * len(batch["prompt"])
            wholes = [p + a for p, a in zip(batch["prompt"], added, strict=True)]
            if chat:
                found[name] = tokenizer.apply_chat_template(
                    wholes, add_generation_prompt=name == "prompt"
                )["input_ids"]
            else:
                found[name] = tokenizer(wholes)["input_ids"]
        return {f"{name}_ids": ids for name, ids in found.items()}

    data = datasets.load_dataset("json", data_files=path, split="train", cache_dir=place)
    data.map(tokenize, batched=True, remove_columns=data.column_names)


def anonymous() -> float:
    """MiB of memory that no file stands behind."""
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**10


@contextmanager
def peak_of(phase: str, before: float) -> Iterator[None]:
    """Print a phase's seconds and its highest memory beyond what there was."""
    seen, over, start = [anonymous()], threading.Event(), time.perf_counter()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    seconds = time.perf_counter() - start
    print(f"  {phase}: {seconds:.1f} s, peak {max(seen) - before:.0f} MiB", flush=True)


def remember(make: Callable[..., BranchedDataModule], cache: str, batches: int) -> None:
    """Memory of a first start, of a second one, and of batches after it."""
    before = anonymous()
    with peak_of("preparing", before):
        make(cache_dir=cache).prepare_data()
    disk = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    print(f"  tokens on disk: {disk / 2**20:.0f} MiB", flush=True)
    with peak_of("second start to the first batch", before):
        loader = iter(begun(make, cache).train_dataloader())
        next(loader)
    with peak_of(f"{batches} batches more", before):
        for _ in islice(loader, batches):
            pass


def turns(ours: Callable[[str], Any], plain: Callable[[str], Any], rows: int, times: int) -> None:
    """Time both in turns; the ratio is of CPU time, which other work on the machine touches least."""
    spent: dict[str, list[float]] = {"ours": [], "plain": []}
    walls: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(times):
        for name, act in (("ours", ours), ("plain", plain)):
            with tempfile.TemporaryDirectory() as place:
                start, cpu = time.perf_counter(), time.process_time()
                act(place)
                spent[name].append((time.process_time() - cpu) / rows * 1e6)
                walls[name].append((time.perf_counter() - start) / rows * 1e6)
    for name, values in spent.items():
        print(f"  {name}: {_span(values)} us of CPU a row ({_span(walls[name])} by the clock)")
    ratios = [b / a for a, b in zip(spent["ours"], spent["plain"], strict=True)]
    middle = statistics.median(spent["plain"]) / statistics.median(spent["ours"])
    print(
        f"  ours is {middle:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})", flush=True
    )


def _span(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=3, help="turns of ours and of datasets.map")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--tokenizer", choices=("bytes", "spaces"), default="bytes")
    parser.add_argument("--batches", type=int, default=0, help="measure memory over so many, too")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    text = make_texts()
    tokenizer = make_tokenizer(options.tokenizer, [text(50) for _ in range(2000)])
    for name in options.workloads:
        load = WORKLOADS[name]
        print(f"{name}, {options.rows} rows", flush=True)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "rows.jsonl"
            with path.open("w") as file:  # a row at a time: memory is measured
                file.writelines(f"{json.dumps(load.make(text))}\n" for _ in range(options.rows))
            make = partial(load.module, FileSource(str(path)), tokenizer=tokenizer)
            if options.batches:
                remember(make, str(Path(place) / "cache"), options.batches)
            if options.times:
                plain = partial(plain_map, str(path), tokenizer, load.answers)
                turns(partial(begun, make), plain, options.rows, options.times)


if __name__ == "__main__":
    main()
