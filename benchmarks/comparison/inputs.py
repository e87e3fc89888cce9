"""The model, the rows, the reward models and the teacher of all workloads: made once under `<work dir>/inputs`."""

import json
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.comparison.ledger import digest
from benchmarks.human_sentiment.prepare import Recipe, prepare
from benchmarks.workloads import rows
from benchmarks.workloads.settings import TARGETS, Settings
from lit_rlhf.models import LoraSpec, ModelSpec

REVIEWS = "lists_train"
"""The data set of benchmarks/human_sentiment whose texts are taken."""
_SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class Inputs:
    """What workloads read.

    Attributes:
        model: Directory of the language model.
        folder: Of everything else.
        stop_tokens: Ids that end a completion where lengths vary: EOS and the ends of sentences.
        dtype: Of the base's weights where a workload doesn't name its own.
        cpu: See `Settings`.
    """

    model: Path
    folder: Path
    stop_tokens: tuple[int, ...]
    dtype: str = "bfloat16"
    cpu: bool = False

    def settings(self, workload: str, told: dict[str, Any], threads: int) -> Settings:
        """What a script is told."""
        own = {"data", "stops", "workload"}
        rest = {name: value for name, value in told.items() if name not in own}
        adapter = told.get("workload") == "ppo_defaults"
        return Settings(
            workload=told.get("workload", workload),
            model=str(self.model),
            data=str(self.folder / f"{told['data']}.jsonl"),
            reward_model=str(self.folder / ("reward_adapter" if adapter else "reward_model")),
            teacher=str(self.folder / "teacher"),
            stop_tokens=self.stop_tokens if told.get("stops") else (),
            threads=threads,
            **{"dtype": self.dtype, "cpu": self.cpu, **rest},
        )


def add_places(parser: ArgumentParser) -> None:
    """What all comparisons are told: where things are, where the tables go, and how many threads they have."""
    told = "write the tables here, between its marks if it has any"
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=told)
    work, root = Path("runs/compare"), Path("runs/human_sentiment")
    told = "inputs, environments, logs and runs"
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help=told)
    parser.add_argument("--root", type=Path, default=root, metavar="DIR", help="model and reviews")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads of each process")


def make_inputs(root: Path, folder: Path) -> Inputs:
    """What is missing is made.

    Args:
        root: Of benchmarks/human_sentiment: its model and data, which are fetched where they are missing.
        folder: To write to.
    """
    root, folder = root.resolve(), folder.resolve()
    model, reviews = root / "model", root / "data" / f"{REVIEWS}.jsonl"
    if not (model / "config.json").is_file() or not reviews.is_file():
        prepare(root, root / "downloads", Recipe())
    stamp = folder / "complete.json"
    recipe = {"model": str(model), "rank": Settings.rank, "code": digest([Path(rows.__file__)])}
    if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != recipe:
        rows.write_rows(reviews, model, folder)
        rows.write_reward_model(model, folder / "reward_model")
        rows.write_teacher(model, folder / "teacher")
        lora = LoraSpec(rank=Settings.rank, alpha=2.0 * Settings.rank, target_modules=TARGETS)
        base = ModelSpec(name=str(model), dtype="bfloat16", lora=lora)
        rows.write_reward_adapter(base, folder / "reward_adapter")
        stamp.write_text(json.dumps(recipe), encoding="utf-8")
    return Inputs(model, folder, _stop_tokens(model))


def _stop_tokens(model: Path) -> tuple[int, ...]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return tuple(
        sorted({tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(_SENTENCE_ENDS))})
    )
