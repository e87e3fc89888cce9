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

where, root = sys.argv[1], Path(sys.argv[2])
asked: list[str] = []


def placed() -> torch.device:
    """In place of `default_device`, which knows GPUs alone."""
    asked.append(sys.argv[1])
    return torch.device(device.CARD if where == "card" else "cpu")


if where == "card":
    device.build()
precision.default_device = placed  # before commands are imported

from lit_rlhf.cli.main import main  # noqa: E402  (see above)

world, out = root / "world", root / where
out.mkdir()
MODEL, PAIRS, PROMPTS, DEMONSTRATIONS, REWARD = (
    str(world / name)
    for name in (
        "tiny-model",
        "preferences.jsonl",
        "prompts.jsonl",
        "demonstrations.jsonl",
        "reward.ckpt",
    )
)
ENDS = ["--sampling.max_new_tokens", "8", "--seed", "3"]
SAMPLE = ["generate", "--model", MODEL, "--prompts", PROMPTS, "--num_samples", "2", *ENDS]
SCORED = ["--reward", "ModelReward", "--reward.path", REWARD]
JUDGE = ["--judge", "LocalJudge", "--judge.backbone.name", MODEL, "--judge.template", "pairwise"]
COMMANDS = {
    "reward": ["export", "--ckpt_path", REWARD, "--calibrate", PAIRS],
    "samples.jsonl": [*SAMPLE, *SCORED, "--reference", MODEL],
    "plain.jsonl": [*SAMPLE, "--engine", "HFEngine"],
    "scores.jsonl": ["score", "--model", REWARD, "--data", DEMONSTRATIONS],
    "reward.html": ["evaluate-reward", "--path", REWARD, "--data", PAIRS, "--perturbed", "4"],
    "judge.html": ["evaluate-reward", *JUDGE, "--data", PAIRS, "--perturbed", "0"],
    "labels.jsonl": ["label", PAIRS, *JUDGE],
}
for name, words in COMMANDS.items():
    asked.clear()
    main([*words, "--output", str(out / name)])
    assert asked, f"{words[0]} doesn't ask where to put its model"
sys.stdin = io.StringIO("how was the film? \nand the food? \n")
asked.clear()
main(["chat", MODEL, "--reward", REWARD, *ENDS])
assert asked, "nor chat"
