"""Commands that load models, on the CPU or on the stand-in for a GPU. Not a test: `test_card.py` starts it.

    python card_commands.py cpu|card directory

The directory holds `world`, in which a reward model is `reward.ckpt`; what the commands write lies in a directory of
the device's name.
"""

import io
import sys
from pathlib import Path

import torch

from lit_rlhf.models import precision
from tests.card import device


def walk(where: str, root: Path) -> None:
    """All commands, each of which must ask where to put its model."""
    asked: list[str] = []

    def placed() -> torch.device:
        asked.append(where)
        return torch.device(device.CARD if where == "card" else "cpu")

    if where == "card":
        device.build()
    precision.default_device = placed  # which knows GPUs alone; before commands are imported
    from lit_rlhf.cli.main import main

    out = root / where
    out.mkdir()
    for name, words in commands(root / "world").items():
        asked.clear()
        main([*words, "--output", str(out / name)])
        assert asked, words[0]
    sys.stdin = io.StringIO("how was the film? \nand the food? \n")
    asked.clear()
    world = root / "world"
    main(["chat", str(world / "tiny-model"), "--reward", str(world / "reward.ckpt"), *ENDS])
    assert asked, "chat"


ENDS = ["--sampling.max_new_tokens", "8", "--seed", "3"]


def commands(world: Path) -> dict[str, list[str]]:
    """By the name of what they write."""
    model, pairs, prompts, demonstrations, reward = (
        str(world / name)
        for name in (
            "tiny-model",
            "preferences.jsonl",
            "prompts.jsonl",
            "demonstrations.jsonl",
            "reward.ckpt",
        )
    )
    sample = ["generate", "--model", model, "--prompts", prompts, "--num_samples", "2", *ENDS]
    scored = ["--reward", "ModelReward", "--reward.path", reward]
    judge = [
        "--judge",
        "LocalJudge",
        "--judge.backbone.name",
        model,
        "--judge.template",
        "pairwise",
    ]
    return {
        "reward": ["export", "--ckpt_path", reward, "--calibrate", pairs],
        "samples.jsonl": [*sample, *scored, "--reference", model],
        "plain.jsonl": [*sample, "--engine", "HFEngine"],
        "scores.jsonl": ["score", "--model", reward, "--data", demonstrations],
        "reward.html": ["evaluate-reward", "--path", reward, "--data", pairs, "--perturbed", "4"],
        "judge.html": ["evaluate-reward", *judge, "--data", pairs, "--perturbed", "0"],
        "labels.jsonl": ["label", pairs, *judge],
    }


if __name__ == "__main__":
    walk(sys.argv[1], Path(sys.argv[2]))
