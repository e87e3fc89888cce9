"""Preference pairs of the initial policy's own completions, labelled by the reward model.

    python -m benchmarks.human_sentiment.policy_pairs --root runs/human_sentiment --prompts 1024

Direct methods learn from the same distribution and the same judge as PPO that way: each prompt is completed twice by
the policy that all methods start from, and which one is `chosen` is drawn with the Bradley-Terry probability of the
reward model's scores. DPO at beta and PPO at a KL coefficient of beta then have the same optimum; with the raters' own
pairs, of other people's sentences, they would differ in data and judge, too. Pairs with a completion that doesn't end
within the limit are left out: as data they would end where they were cut. Writes `<root>/data/policy_pairs.jsonl`.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.machine import fast_dtype
from benchmarks.human_sentiment.measures import INITIAL, Measurement, attached_reward, load_policy
from benchmarks.human_sentiment.prepare import write_jsonl
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.seeding import generator

Sample = dict[str, Any]
FILE = Path("data", "policy_pairs.jsonl")
"""Under the root of the runs."""
_BATCH, _LONGEST = 64, 48


def make_pairs(root: Path, prompts: int, dtype: DTypeName, seed: int) -> list[dict[str, Any]]:
    """Rows with `prompt`, `chosen`, `rejected`, and the scores of both."""
    policy = load_policy(root, str(INITIAL), dtype)
    reward = attached_reward(root / "reward" / "export", policy, root, dtype, normalize=False)
    measurement = Measurement(
        root, prompts, 2 * _BATCH, _LONGEST, seed, file="prompts_train", purpose="pairs"
    )
    rows: list[dict[str, Any]] = []
    for number, twice in enumerate(measurement.batches(policy, policy, {"score": reward}, 2)):
        rows += labelled(
            zip(twice[::2], twice[1::2], strict=True), generator(seed, "labels", number)
        )
        print(f"\r{(number + 1) * _BATCH} prompts, {len(rows)} pairs", end="", flush=True)
    print()
    return rows


def labelled(pairs: Iterable[tuple[Sample, Sample]], draw: torch.Generator) -> Iterator[Sample]:
    """Draw which of two is chosen, with the probability that Bradley and Terry give it.

    Args:
        pairs: Two samples of a prompt, with `prompt`, `response`, `score` and `finished` each.
        draw: Where the randomness comes from.
    """
    for pair in pairs:
        coin = float(torch.rand((), generator=draw))  # for each: leaving one out moves no other
        texts, scores = ([each[name] for each in pair] for name in ("response", "score"))
        ended = all(each["finished"] for each in pair)
        if not ended or texts[0] == texts[1] or not all(map(str.strip, texts)):
            continue
        gap = torch.tensor(scores[0] - scores[1])
        best = 0 if coin < float(gap.sigmoid()) else 1
        yield {
            "prompt": pair[0]["prompt"],
            "chosen": texts[best],
            "rejected": texts[1 - best],
            "score_chosen": scores[best],
            "score_rejected": scores[1 - best],
        }


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Pairs of the initial policy's completions, labelled by the reward model."
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("runs/human_sentiment"),
        help="where prepare.py put everything",
    )
    parser.add_argument("--prompts", type=int, default=1024, help="prompts to complete twice")
    parser.add_argument(
        "--dtype",
        default=fast_dtype(),
        help="of the weights; default: what this machine multiplies",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    rows = make_pairs(options.root, options.prompts, options.dtype, options.seed)
    write_jsonl(options.root / FILE, rows)


if __name__ == "__main__":
    main()
