"""Judges all adapters that the runs left, by one sampler on the same held-out prompts: `judged.json` beside them.

`python -m benchmarks.time_to_reward.judging <work dir> <root>`
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.comparison.machine import fast_dtype
from benchmarks.human_sentiment.judge import SentimentIntensityAnalyzer
from benchmarks.human_sentiment.measures import (
    INITIAL,
    Measurement,
    judge_samples,
    load_policy,
    summarize,
)
from benchmarks.time_to_reward.race import adapters
from benchmarks.workloads.lit import spec
from benchmarks.workloads.settings import Settings
from lit_rlhf.files import write_text
from lit_rlhf.models import Backbone
from lit_rlhf.rewards import ModelReward

FILE = "judged.json"
START = "initial"


class Examiner:
    """Samples of a policy, and what the judge, the reward model and the initial policy say of them.

    Args:
        work: Where the reward model is.
        root: Directory of benchmarks/human_sentiment.
        prompts: Held-out prompts to complete.
    """

    def __init__(self, work: Path, root: Path, prompts: int) -> None:
        self.measurement = Measurement(root, prompts=prompts)
        dtype = fast_dtype()
        self.initial = load_policy(root, str(INITIAL), dtype)  # type: ignore[arg-type]
        settings = Settings("", str(root / INITIAL), "", 0, 0, dtype=dtype)
        self.policy = Backbone.load(spec(settings)).eval()
        self.policy.add_adapter("policy", trainable=False)
        self.reward = ModelReward(str(work / "reward"), dtype=dtype)  # type: ignore[arg-type]
        self.reward.attach(self.initial)

    def judge(self, file: Path | None) -> dict[str, float]:
        """Of a policy with these adapters; None: of the initial one."""
        policy = self.initial
        if file is not None:
            policy, given = self.policy, torch.load(file)
            own = adapters(policy.named_parameters())
            if own.keys() != given.keys():
                raise ValueError(
                    f"{file} has other layers than the policy: {sorted(own.keys() ^ given.keys())[:3]}."
                )
            for name, weight in own.items():
                weight.data.copy_(given[name])
        samples = self.measurement.sample(policy, self.initial, {"reward": self.reward})
        judge_samples(samples, SentimentIntensityAnalyzer())
        return summarize(samples, ["reward"])


def coarse_first(files: Iterable[Path]) -> list[Path]:
    """Named by iteration: those of the highest power of two go first, of all runs: a sweep cut short is a coarser one.

    Example:
        >>> [file.stem for file in coarse_first(map(Path, ["1.pt", "2.pt", "4.pt", "6.pt"]))]
        ['4', '2', '6', '1']
    """
    return sorted(files, key=lambda file: (-(int(file.stem) & -int(file.stem)), file))


def judge_all(work: Path, root: Path, prompts: int = 256) -> None:
    """Judge what runs left and wasn't judged yet, the initial policy first."""
    examiner = None
    for file in [None, *coarse_first((work / "adapters").glob("*/*.pt"))]:
        target = (work if file is None else file.parent) / FILE
        name = START if file is None else file.name
        found = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        if name in found:
            continue
        examiner = examiner or Examiner(work, root, prompts)
        found[name] = examiner.judge(file)
        write_text(target, json.dumps(found, indent=1))
        gold, kl = found[name]["gold"], found[name]["kl"]
        print(f"{target.parent.name} {name}: judge {gold:.3f}, KL {kl:.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    judge_all(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
