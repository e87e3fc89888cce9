"""Which labels, which loss and how many models a reward model of film reviews is best made of.

    python -m benchmarks.human_sentiment.prepare
    python -m benchmarks.human_sentiment.recipes --frozen 0 1 2 --seeds 0 1 2 --whole 0 1 2

Each arm is `reward.yaml` with another loss or other rows, cut short: of a seed all arms learn from the same sentences
of the same lists, as many a step, from the same initial head and adapter. `--whole` runs `reward.yaml` as it stands
from these seeds too. A run is in `<root>/recipes/<arm>-<seed>`, with its scores of all held-out sentences in
`scores.json`; one that is there isn't run again. `--frozen` fits a head on frozen states by each arm, which takes
seconds once the states are there: each seed learns from another half of the lists. Writes
`<root>/recipes/recipes.json`.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.human_sentiment.frozen import States, fit_head
from benchmarks.human_sentiment.labelled import SCALE, Pairs, pairs_of
from benchmarks.human_sentiment.measures import INITIAL
from benchmarks.human_sentiment.prepare import write_jsonl
from benchmarks.human_sentiment.raters import (
    RatedPair,
    by_gap,
    calibration_error,
    credit,
    read_pairs,
)
from benchmarks.human_sentiment.rows import PREFIX, Row
from lit_rlhf import objectives
from lit_rlhf.cli import main as lit_rlhf
from lit_rlhf.files import write_text
from lit_rlhf.metrics import Estimate, agreement, best_temperature, bootstrap_mean, mcnemar_test
from lit_rlhf.models import load_reward_model
from lit_rlhf.objectives import RewardLoss
from lit_rlhf.rewards.retokenize import TextReader, token_rows
from lit_rlhf.rewards.scoring import score_rows

HERE = Path(__file__).parent
WHOLE = "whole"
OTHERS = ("products", "editorials", "tweets")
USED = 1100
"""So many of the training lists `reward.yaml` learns from."""
FIRST_ROUND = 1195
"""Lists of the first round, which has each sentence once: nobody learns from the sentences of those behind `USED`."""
_LISTS_A_STEP = 4
_FAR = 0.5
Scores = Mapping[str, float]
Runs = Mapping[int, Scores]


@dataclass(frozen=True)
class Arm:
    """What differs from `reward.yaml`.

    Attributes:
        loss: Class and arguments.
        columns: None: lists. Else pairs of neighbours in the same lists, with these columns of `pair_rows`.
    """

    loss: Mapping[str, Any]
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
                "limit_val_batches": 0,
                "logger": False,
                "callbacks": [{"class_path": "ExportModel", "init_args": export}],
            },
            "model": {"init_args": {"loss": dict(self.loss), "lr_scheduler": steps, "seed": seed}},
            "data": {"class_path": kind, "init_args": data},
        }


def _loss(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": options}


ARMS = {
    "lists, soft": Arm(_loss("AllPairs", temperature=SCALE)),
    "lists, hard": Arm(_loss("AllPairs", temperature=None)),
    "pairs, soft": Arm(_loss("BradleyTerry"), ("p_chosen",)),
    "pairs, margin": Arm(_loss("BradleyTerry"), ("margin",)),
    "pairs, hard": Arm(_loss("BradleyTerry"), ()),
}


def _pairs(lists: Pairs) -> list[Row]:
    """Neighbours of each list but ties, with a soft label and, as margin, the difference of their means."""
    found = pairs_of(lists, len(lists) * len(lists[0]["completions"]))
    return [pair | {"p_chosen": 1 / (1 + math.exp(-pair["margin"] / SCALE))} for pair in found]


@dataclass(frozen=True)
class Held:
    """Held-out sentences.

    Attributes:
        pairs: By domain.
        unseen: Training lists whose sentences no arm and no seed learns from.
    """

    pairs: Mapping[str, Sequence[RatedPair]]
    unseen: Pairs

    def texts(self, domains: Iterable[str]) -> list[str]:
        """All sentences of these and of the unseen lists, once."""
        texts = [text for name in domains for pair in self.pairs[name] for text in pair.texts]
        texts += [text.strip() for row in self.unseen for text in row["completions"]]
        return list(dict.fromkeys(texts))


def score(export: Path, base: Path, texts: Sequence[str]) -> dict[str, float]:
    """A reward model's scores of sentences."""
    backbone = load_reward_model(export, dtype="bfloat16", base=str(base))
    reader = TextReader(backbone.tokenizer)
    prompt, tails = reader.read(
        PREFIX, [f" {text}" for text in texts], [True] * len(texts), rendered=False
    )
    rows = token_rows([prompt] * len(texts), tails, torch.device("cpu"))
    found = score_rows(backbone, rows, "reward", batch_tokens=2048, path=str(export))
    return dict(zip(texts, found[:, 0].tolist(), strict=True))


def run_arm(name: str, seed: int, root: Path, lists: Pairs, count: int) -> Path:
    """Train one arm from a seed, unless its export is there; returns the directory."""
    directory = root / "recipes" / f"{name.replace(', ', '-')}-{seed}"
    if not (directory / "export").exists():
        arm, drawn = ARMS[name], random.Random(seed).sample(lists[:USED], count)
        write_jsonl(directory / "rows.jsonl", arm.rows(drawn))
        lit_rlhf(command(root, directory, arm.options(directory, seed, count)))
    return directory


def run_whole(seed: int, root: Path) -> Path:
    """Train by `reward.yaml` as it stands from a seed, likewise."""
    directory = root / "recipes" / f"{WHOLE}-{seed}"
    if not (directory / "export").exists():
        lit_rlhf(command(root, directory, whole_options(seed)))
    return directory


def whole_options(seed: int) -> dict[str, Any]:
    """What is laid over `reward.yaml` for another seed."""
    return {"seed_everything": seed} | {
        part: {"init_args": {"seed": seed}} for part in ("model", "data")
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


def fit_frozen(
    name: str, seed: int, states: States, lists: Pairs, unseen: Pairs
) -> Callable[[Sequence[str]], dict[str, float]]:
    """Fit a head on frozen states by one arm, on a random half of these lists, and stop by its loss on unseen ones.

    Returns:
        What scores sentences.
    """
    arm, drawn = ARMS[name], random.Random(seed).sample(lists, len(lists) // 2)
    read = [_columns(arm.rows(part)) for part in (drawn, unseen)]
    (own, columns), (others, checked) = [
        (
            states.of([text for row in texts for text in row]).view(len(texts), len(texts[0]), -1),
            more,
        )
        for texts, more in read
    ]
    middle, spread = own.mean((0, 1)), own.std((0, 1))
    head = fit_head(
        arm.objective(),
        (own - middle) / spread,
        columns,
        ((others - middle) / spread, checked),
        seed,
        batch=arm.batch_size,
    )

    @torch.no_grad()
    def scored(texts: Sequence[str]) -> dict[str, float]:
        found = head((states.of(texts) - middle) / spread)[:, 0]
        return dict(zip(texts, found.tolist(), strict=True))

    return scored


def _columns(rows: Sequence[Row]) -> tuple[list[list[str]], dict[str, Tensor]]:
    """The answers of each row, and what a loss reads of it."""
    names = rows[0].keys() & {"p_chosen", "margin"}
    if "completions" not in rows[0]:
        texts = [[row["chosen"].strip(), row["rejected"].strip()] for row in rows]
        return texts, {name: torch.tensor([row[name] for row in rows]) for name in names}
    texts = [[text.strip() for text in row["completions"]] for row in rows]
    return texts, {"score": torch.tensor([row["scores"] for row in rows])}


def scores_of(directory: Path, root: Path, held: Held, domains: Sequence[str]) -> dict[str, float]:
    """Of all held-out sentences, scored unless they were; of the whole recipe those of other domains too."""
    file = directory / "scores.json"
    known: dict[str, float] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    missing = [text for text in held.texts(domains) if text not in known]
    if missing:
        known |= score(directory / "export", root / INITIAL, missing)
        write_text(file, json.dumps(known, ensure_ascii=False) + "\n", "The scores")
    return known


def margins(scores: Scores, pairs: Sequence[RatedPair]) -> Tensor:
    """Of the better-rated sentence less the other's, (n,)."""
    return torch.tensor([scores[a] - scores[b] for a, b in (pair.texts for pair in pairs)]).double()


def mean_scores(runs: Sequence[Scores]) -> dict[str, float]:
    """An ensemble's: the mean of its members' scores."""
    return {
        text: fmean(run[text] for run in runs) for text in runs[0] if all(text in r for r in runs)
    }


def temperature(scores: Scores, unseen: Pairs) -> float:
    """By which scores are to be divided, found on all pairs of training lists that nobody learned from."""
    gaps, soft = [], []
    for row in unseen:
        rated = [*zip(row["completions"], row["scores"], strict=True)]
        for (one, high), (other, low) in combinations(rated, 2):
            gaps.append(scores[one.strip()] - scores[other.strip()])
            soft.append((high - low) / SCALE)
    return best_temperature(torch.tensor(gaps), torch.tensor(soft).double().sigmoid())


def numbers(scores: Scores, pairs: Sequence[RatedPair], warmth: float) -> dict[str, Any]:
    """Of one model on pairs: accuracy, agreement with a rater, calibration as it is and at a temperature."""
    found = margins(scores, pairs)
    gaps = torch.tensor([pair.gap for pair in pairs]).double()
    p_first = torch.tensor([pair.p_first for pair in pairs]).double()
    return {
        "accuracy": by_gap(credit(found, torch.ones_like(found)), gaps),
        "agreement": float(agreement(found, p_first).mean()),
        "ece": calibration_error(found, p_first),
        "temperature": warmth,
        "ece_at_temperature": calibration_error(found / warmth, p_first),
    }


@dataclass(frozen=True)
class Paired:
    """Two recipes on the same far pairs; differences are the second's accuracy less the first's.

    Attributes:
        difference: Mean over seeds, and its bootstrap interval over pairs.
        seeds: Of each seed.
        p_values: McNemar's, of each seed.
    """

    difference: Estimate
    seeds: list[float]
    p_values: list[float]


def paired(first: Sequence[Scores], second: Sequence[Scores], pairs: Sequence[RatedPair]) -> Paired:
    """Compare runs of two recipes, seed by seed, on pairs with a gap of at least 0.5.

    Seeds judge the same pairs, so the interval is of draws of pairs, each with the mean over its seeds: it holds for
    other pairs, not for other seeds.
    """
    far = [pair for pair in pairs if pair.gap >= _FAR]
    right = [
        torch.stack([credit(m, torch.ones_like(m)) for m in (margins(run, far) for run in runs)])
        for runs in (first, second)
    ]  # (seeds, pairs) each
    alone = [
        (int(((a == 1) & (b < 1)).sum()), int(((a < 1) & (b == 1)).sum()))
        for a, b in zip(*right, strict=True)
    ]
    gained = right[1] - right[0]
    return Paired(
        bootstrap_mean(gained.mean(0)), gained.mean(-1).tolist(), [mcnemar_test(*n) for n in alone]
    )


def summary(runs: Mapping[str, Runs], held: Held) -> dict[str, Any]:
    """All numbers: of each run, of each recipe's ensemble, and what is paired with what."""
    found: dict[str, Any] = {}
    films = held.pairs["heldout"]
    base = "lists, soft"
    for name, seeds in runs.items():
        members = {str(seed): scores for seed, scores in seeds.items()}
        together = {"ensemble": mean_scores([*seeds.values()])} if len(seeds) > 1 else {}
        found[name] = {"models": {}}
        for who, scores in (members | together).items():
            warmth = temperature(scores, held.unseen)
            found[name]["models"][who] = {
                domain: numbers(scores, pairs, warmth)
                for domain, pairs in held.pairs.items()
                if all(text in scores for pair in pairs for text in pair.texts)
            }
        if together:
            several = [together["ensemble"]] * len(seeds)
            found[name]["ensemble_less_one"] = vars(paired([*seeds.values()], several, films))
        shared = sorted(seeds.keys() & runs.get(base, {}).keys())
        if name not in (base, WHOLE) and shared:
            ours, theirs = ([each[seed] for seed in shared] for each in (seeds, runs[base]))
            found[name]["less_lists_soft"] = vars(paired(theirs, ours, films))
    return found


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a line for each recipe, mean and deviation over seeds, and for its ensemble."""
    lines = [
        "| recipe | seeds | accuracy | at 0.5 | ECE | temperature | ECE at it | against lists, soft, or one model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        models = each["models"]
        ones = [row["heldout"] for who, row in models.items() if who != "ensemble"]
        lines.append(_line(name, len(ones), ones, each.get("less_lists_soft")))
        if "ensemble" in models:
            row = [models["ensemble"]["heldout"]]
            lines.append(_line(f"{name}, ensemble", len(ones), row, each["ensemble_less_one"]))
    return "\n".join(lines)


def domains(found: Mapping[str, Any]) -> str:
    """Markdown: of each recipe and its ensemble accuracy at a difference of 0.5, and ECE at films' temperature."""
    lines = [f"| recipe | {' | '.join(OTHERS)} |", "|---|" + "---|" * len(OTHERS)]
    for name, each in found.items():
        models = each["models"]
        ones = [row for who, row in models.items() if who != "ensemble"]
        several = [(f"{name}, ensemble", [models["ensemble"]])] if "ensemble" in models else []
        for who, rows in [(name, ones), *several]:
            cells = [
                f"{_spell([row[domain]['accuracy']['0.5'][0] for row in rows])}, ECE "
                f"{_spell([row[domain]['ece_at_temperature'] for row in rows])}"
                for domain in OTHERS
                if domain in rows[0]
            ]
            if cells:
                lines.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _line(name: str, seeds: int, rows: Sequence[Mapping[str, Any]], paired: Any) -> str:
    columns = [
        [row["accuracy"]["0"][0] for row in rows],
        [row["accuracy"]["0.5"][0] for row in rows],
        [row["ece"] for row in rows],
        [row["temperature"] for row in rows],
        [row["ece_at_temperature"] for row in rows],
    ]
    cells = [name, str(seeds), *(_spell(values) for values in columns)]
    if paired:
        value, low, high = paired["difference"]
        p = ", ".join(f"{each:.2g}" for each in paired["p_values"])
        cells.append(f"{value:+.3f} ({low:+.3f} to {high:+.3f}); p {p}")
    return f"| {' | '.join(cells)} |"


def _spell(values: Sequence[float]) -> str:
    """Mean and deviation.

    Example:
        >>> _spell([0.5, 0.75]), _spell([0.5])
        ('0.625 ± 0.177', '0.500')
    """
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


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
    parser.add_argument("--other", type=int, default=1000, help="pairs of each other domain")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    root: Path = options.root
    path = root / "data" / "lists_train.jsonl"
    lists = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    others = {name: read_pairs(root, f"pairs_{name}")[: options.other] for name in OTHERS}
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
        print(f"\n{name}\n\n{table(each)}\n\n{domains(each)}")


if __name__ == "__main__":
    main()
