"""The recipes of `recipes.py`: what differs from `reward.yaml`, as rows, as options and as a command."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.human_sentiment.labelled import SCALE, Pairs, pairs_of
from benchmarks.human_sentiment.rows import Row
from lit_rlhf import objectives
from lit_rlhf.objectives import RewardLoss

HERE = Path(__file__).parent
STEPS = 800
"""Of `reward.yaml`."""
USED = 1100
"""So many of the training lists are learned from here."""
FIRST_ROUND = 1195
"""Lists of the first round, which has each sentence once: nobody learns from the sentences of those behind `USED`."""
_LISTS_A_STEP = 4


@dataclass(frozen=True)
class Arm:
    """What differs from `reward.yaml`.

    Attributes:
        loss: Class and arguments.
        beside: The arm that it is paired with: they differ in one thing.
        columns: None: lists. Else pairs of neighbours in the same lists, with these columns.
    """

    loss: Mapping[str, Any]
    beside: str | None = None
    columns: tuple[str, ...] | None = None

    @property
    def batch_size(self) -> int:
        """Rows of a step: of as many sentences in all arms."""
        return _LISTS_A_STEP if self.columns is None else 4 * _LISTS_A_STEP

    def rows(self, lists: Pairs) -> list[Row]:
        """What it learns from."""
        if self.columns is None:
            return [dict(row) for row in lists]
        kept = ("prompt", "chosen", "rejected", *self.columns)
        return [{name: pair[name] for name in kept} for pair in _pairs(lists)]

    def objective(self) -> RewardLoss:
        """The loss itself."""
        made: RewardLoss = getattr(objectives, self.loss["class_path"])(**self.loss["init_args"])
        return made

    def options(self, directory: Path, seed: int, lists: int) -> dict[str, Any]:
        """What is laid over `reward.yaml`: of this arm, and to cut it short."""
        source = {"class_path": "FileSource", "init_args": {"path": str(directory / "rows.jsonl")}}
        data: dict[str, Any] = {"train": source, "val": None, "seed": seed}
        data["batch_size"] = self.batch_size
        kind = "RankedDataModule" if self.columns is None else "PreferenceDataModule"
        export = {"dirpath": str(directory / "export"), "merge": False}
        steps = {"init_args": {"total_steps": lists // _LISTS_A_STEP}}
        return {
            "seed_everything": seed,
            "trainer": {
                "default_root_dir": str(directory),
                "limit_val_batches": 0,
                "logger": False,
                "enable_checkpointing": False,
                "callbacks": [{"class_path": "ExportModel", "init_args": export}],
            },
            "model": {"init_args": {"loss": dict(self.loss), "lr_scheduler": steps, "seed": seed}},
            "data": {"class_path": kind, "init_args": data},
        }


def _loss(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": options}


ARMS = {
    "lists, soft": Arm(_loss("AllPairs", temperature=SCALE)),
    "lists, hard": Arm(_loss("AllPairs", temperature=None), "lists, soft"),
    "pairs, soft": Arm(_loss("BradleyTerry"), "lists, soft", ("p_chosen",)),
    "pairs, hard": Arm(_loss("BradleyTerry"), "pairs, soft", ()),
    "pairs, margin": Arm(_loss("BradleyTerry"), "pairs, hard", ("margin",)),
}


def _pairs(lists: Pairs) -> list[Row]:
    """Neighbours of each list but ties, with a soft label and, as margin, the difference of their means."""
    found = pairs_of(lists, len(lists) * len(lists[0]["completions"]))
    return [pair | {"p_chosen": 1 / (1 + math.exp(-pair["margin"] / SCALE))} for pair in found]


def whole_options(root: Path, seed: int) -> dict[str, Any]:
    """What is laid over `reward.yaml` for a seed, and to leave it as many steps without the unseen sentences."""
    portion = {"path": str(root / "data" / "lists_train.jsonl"), "max_rows": USED}
    stop = {"class_path": "StopAfter", "init_args": {"steps": STEPS}}
    passes = math.ceil(STEPS * _LISTS_A_STEP / USED)
    train = {"class_path": "Mixture", "init_args": {"portions": [portion]}}
    return {
        "seed_everything": seed,
        "trainer": {"max_epochs": passes, "limit_train_batches": 1.0, "callbacks+": [stop]},
        "model": {"init_args": {"seed": seed}},
        "data": {"init_args": {"seed": seed, "train": train}},
    }


def command(root: Path, directory: Path, options: Mapping[str, Any]) -> list[str]:
    """The words of `lit-rlhf fit` by `reward.yaml`, its directories moved, and these options; both are written."""
    text = (HERE / "reward.yaml").read_text(encoding="utf-8")
    text = text.replace("runs/human_sentiment/reward", str(directory))
    directory.mkdir(parents=True, exist_ok=True)
    files = directory / "reward.yaml", directory / "options.yaml"
    files[0].write_text(text.replace("runs/human_sentiment", str(root)), encoding="utf-8")
    files[1].write_text(yaml.safe_dump(dict(options)), encoding="utf-8")
    return ["fit", "-c", str(files[0]), "-c", str(files[1])]
