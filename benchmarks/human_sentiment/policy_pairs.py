"""Preference pairs of the initial policy's own completions, labelled by the reward model.

    python -m benchmarks.human_sentiment.policy_pairs --root runs/human_sentiment --prompts 1024

Direct methods learn from the same distribution and the same judge as PPO that way: each prompt is completed twice by
the policy that all methods start from, and which one is `chosen` is drawn with the Bradley-Terry probability of the
reward model's scores. DPO at beta and PPO at a KL coefficient of beta then have the same optimum; with the raters' own
pairs, of other people's sentences, they would differ in data and judge, too. Pairs with a completion that doesn't end
within the limit are left out: as data they would end where they were cut. Writes `<root>/data/policy_pairs.jsonl`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison.machine import fast_dtype
from benchmarks.human_sentiment.measures import INITIAL, load_policy
from lit_rlhf.data import FileSource, PromptDataModule
from lit_rlhf.models import Backbone
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.seeding import generator, sample_seeds
from lit_rlhf.types import Completions, PromptBatch, Prompts

FILE = Path("data", "policy_pairs.jsonl")
"""Under the root of the runs."""
_BATCH, _LONGEST = 64, 48


def make_pairs(root: Path, prompts: int, dtype: DTypeName, seed: int) -> list[dict[str, Any]]:
    """Rows with `prompt`, `chosen`, `rejected`, and the scores of both."""
    policy = load_policy(root, str(INITIAL), dtype)
    reward = ModelReward(
        str(root / "reward" / "export"), share_base=False, dtype=dtype, base=str(root / INITIAL)
    )
    reward.attach(policy)
    data = PromptDataModule(
        test=FileSource(str(root / "data" / "prompts_train.jsonl")),
        tokenizer=policy.tokenizer,
        batch_size=_BATCH,
        cache_dir=str(root / "cache"),
    )
    data.prepare_data()
    data.setup("test")
    rows: list[dict[str, Any]] = []
    for number, batch in enumerate(data.test_dataloader()):
        if number * _BATCH >= prompts:
            break
        rows += labelled(
            _complete_twice(batch, policy, reward, seed), generator(seed, "labels", number)
        )
        print(f"\r{(number + 1) * _BATCH} prompts, {len(rows)} pairs", end="", flush=True)
    print()
    return rows


def labelled(pairs: Sequence[dict[str, Any]], draw: torch.Generator) -> Iterator[dict[str, Any]]:
    """Draw which of two is chosen, with the probability that Bradley and Terry give it.

    Args:
        pairs: Rows with `prompt`, `texts` (2), `scores` (2) and `finished` (2).
        draw: Where the randomness comes from.
    """
    for pair in pairs:
        coin = float(torch.rand((), generator=draw))  # for each: leaving one out moves no other
        if (
            not all(pair["finished"])
            or pair["texts"][0] == pair["texts"][1]
            or not all(map(str.strip, pair["texts"]))
        ):
            continue
        gap = torch.tensor(pair["scores"][0] - pair["scores"][1])
        best = 0 if coin < float(gap.sigmoid()) else 1
        texts, scores = pair["texts"], pair["scores"]
        yield {
            "prompt": pair["prompt"],
            "chosen": texts[best],
            "rejected": texts[1 - best],
            "score_chosen": scores[best],
            "score_rejected": scores[1 - best],
        }


def _complete_twice(
    batch: PromptBatch, policy: Backbone, reward: ModelReward, seed: int
) -> list[dict[str, Any]]:
    prompt_ids, prompt_mask = batch["input_ids"], batch["branch_ids"] == 0
    which = (batch["index"][:, None] * 2 + torch.arange(2)).flatten()
    sampling, seeds = Sampling(max_new_tokens=_LONGEST), sample_seeds(seed, 0, "pairs", which)
    request = RolloutRequest(Prompts(prompt_ids, prompt_mask), sampling, seeds, 2)
    found = NativeEngine().generate(policy, request)
    decode = policy.tokenizer.decode
    prompts = [str(decode(ids[mask])) for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
    texts = [
        str(decode(ids[mask], skip_special_tokens=True))
        for ids, mask in zip(found.tokens, found.mask, strict=True)
    ]
    twice = [prompt for prompt in prompts for _ in range(2)]
    scores = reward.score(
        Completions(prompt_ids, prompt_mask, found.tokens, found.mask, found.finished, twice, texts)
    ).total.tolist()
    finished = found.finished.tolist()
    return [
        {
            "prompt": prompt,
            "texts": texts[i : i + 2],
            "scores": scores[i : i + 2],
            "finished": finished[i : i + 2],
        }
        for prompt, i in zip(prompts, range(0, len(texts), 2), strict=True)
    ]


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
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (options.root / FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
