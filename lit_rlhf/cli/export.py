"""`lit-rlhf export`: from a checkpoint to a directory that other tools load."""

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.callbacks import IterationCheckpoint
from lit_rlhf.cli.functions import call
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import export_policy, export_reward, load_checkpoint_backbone
from lit_rlhf.types import GATE


def export(ckpt_path: str, output: Path, merge: bool = True, role: str | None = None) -> None:
    """Export a trained model.

    A reward model becomes an `AutoModelForSequenceClassification`, a policy an `AutoModelForCausalLM`; without merging,
    a LoRA becomes a peft adapter directory. Tokenizer, chat template and model card come with it.

    Args:
        ckpt_path: A checkpoint written by `lit-rlhf fit`, or the directory of a run's checkpoints, of which the newest
            that is whole is taken.
        output: Directory to write; an earlier export there is replaced once the new one is complete.
        merge: Merge the adapter into the weights; a 4-bit base is dequantized into a copy first.
        role: "policy" or "reward"; default: the one that was trained.
    """
    backbone = load_checkpoint_backbone(newest(ckpt_path))
    if role != "policy" and any(name.startswith(GATE) for name in backbone.heads):
        raise ConfigurationError(
            f"The reward of {ckpt_path} is gated by the prompt, more than a linear head, which is all that other tools "
            "read. Give ModelReward, score and evaluate-reward the checkpoint."
        )
    is_reward = role == "reward" or (
        role is None and "reward" in backbone.heads and "policy" not in backbone.adapters
    )
    if is_reward:
        mean, std = backbone.score_mean, backbone.score_std
        export_reward(backbone, output, merge=merge, score_mean=mean, score_std=std)
    else:
        export_policy(backbone, output, merge=merge)
    print(f"Wrote {output}")


def newest(path: str) -> str:
    """Of the directory of a run's checkpoints the newest that is whole; any other path as it is."""
    found = IterationCheckpoint(path).newest_whole() if Path(path).is_dir() else None
    return str(found or path)


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    call(export, words[1:], "export")
