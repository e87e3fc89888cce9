"""Judges all adapters that the runs left, by one sampler on the same held-out prompts: `judged.json` beside them.

`python -m benchmarks.time_to_reward.judging <work dir> <root>`
"""

import json
import sys
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
        self.reward = ModelReward(str(work / "reward"), dtype=dtype)  # type: ignore[arg-type]
        self.reward.attach(self.initial)

    def judge(self, file: Path | None) -> dict[str, float]:
        """Of a policy with these adapters; None: of the initial one."""
        policy = self.initial
        if file is not None:
            policy, given = self.policy, torch.load(file)
            own = adapters(policy.named_parameters())
            if own.keys() != given.keys():
                raise ValueError(f"{file} has other layers than {self.initial}.")
            for name, weight in own.items():
                weight.data.copy_(given[name])
        samples = self.measurement.sample(policy, self.initial, {"reward": self.reward})
        judge_samples(samples, SentimentIntensityAnalyzer())
        return summarize(samples, ["reward"])


def judge_all(work: Path, root: Path, prompts: int = 256) -> None:
    """Judge what wasn't judged yet; what was is kept."""
    folders = sorted(path for path in (work / "adapters").glob("*") if path.is_dir())
    waiting = {folder / FILE: sorted(folder.glob("*.pt")) for folder in folders}
    examiner = None
    for target, files in ({work / FILE: [None]} | waiting).items():
        found = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        for file in files:
            name = START if file is None else file.name
            if name not in found:
                examiner = examiner or Examiner(work, root, prompts)
                found[name] = examiner.judge(file)
                target.write_text(json.dumps(found, indent=1), encoding="utf-8")
                gold, kl = found[name]["gold"], found[name]["kl"]
                print(f"{target.parent.name} {name}: judge {gold:.3f}, KL {kl:.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    judge_all(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
