"""`lit-rlhf export`: from a checkpoint to a directory that other tools load."""

from pathlib import Path

from lit_rlhf.callbacks import IterationCheckpoint
from lit_rlhf.cli.commands import WRITES
from lit_rlhf.cli.output import progress, refuse_output
from lit_rlhf.data.sources import local_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.evaluation import ModelScorer, evaluate_reward, read_comparisons
from lit_rlhf.evaluation.temperature import fitted_temperature
from lit_rlhf.models import Backbone, export_policy, export_reward, load_checkpoint_backbone
from lit_rlhf.models.cards import Temperature
from lit_rlhf.models.precision import default_device
from lit_rlhf.types import GATE


def export(
    ckpt_path: str,
    output: Path,
    merge: bool = True,
    role: str | None = None,
    calibrate: str | None = None,
) -> None:
    """Export a trained model.

    A reward model becomes an `AutoModelForSequenceClassification`, a policy an `AutoModelForCausalLM`; without merging,
    a LoRA becomes a peft adapter directory. Tokenizer, chat template and model card come with it.

    Args:
        ckpt_path: A checkpoint written by `lit-rlhf fit`, or the directory of a run or of its checkpoints, of which the
            newest that is whole is taken.
        output: Directory to write; by --overwrite an earlier export there is replaced once the new one is complete.
        merge: Merge the adapter into the weights; a 4-bit base is dequantized into a copy first.
        role: "policy" or "reward"; default: the one that was trained.
        calibrate: Pairs, rankings or ratings that a reward model was not trained on: its scores are divided by the
            temperature that fits them best, so that the sigmoid of a difference is a probability, whoever reads it.
    """
    checkpoint = newest(ckpt_path)
    backbone = load_checkpoint_backbone(checkpoint)
    base = Path(backbone.spec.name or "") / "config.json"
    refuse_output(
        output, "--output", WRITES["export"]["output"], [checkpoint, base], overwrite=True
    )
    if role != "policy" and any(name.startswith(GATE) for name in backbone.heads):
        raise ConfigurationError(
            f"The reward of {ckpt_path} is gated by the prompt, more than a linear head, which is all that other tools "
            "read. Give ModelReward, score and evaluate-reward the checkpoint."
        )
    is_reward = role == "reward" or (
        role is None and "reward" in backbone.heads and "policy" not in backbone.adapters
    )
    if is_reward:
        export_reward(
            backbone,
            output,
            merge=merge,
            score_mean=backbone.score_mean,
            score_std=backbone.score_std,
            note=backbone.reward_note,
            temperature=None if calibrate is None else _fit(backbone, ckpt_path, calibrate),
        )
    elif calibrate is not None:
        raise ConfigurationError(
            f"--calibrate is of reward models, and what is exported of {ckpt_path} is a policy."
        )
    else:
        export_policy(backbone, output, merge=merge)
    print(f"Wrote {output}")


def _fit(backbone: Backbone, name: str, data: str) -> Temperature:
    """The temperature that fits pairs best, and how far it mends the calibration, said."""
    try:
        comparisons = read_comparisons(local_source(data))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"--calibrate: {error} Here there is no such option: `lit-rlhf data convert` has it, and its output needs "
            "none."
        ) from error
    backbone.to(default_device())
    scorer = ModelScorer(backbone, name, learned=backbone.prompts)
    with progress("scoring", len(comparisons.items)) as tell:
        found = evaluate_reward(scorer, comparisons, perturbed=0, tell=tell)
    fitted, own = fitted_temperature(found), found.calibration
    assert own is not None  # else it is refused
    left_out = "".join(f"{count} left out, {why}. " for why, count in found.left_out.items())
    print(
        f"{left_out}Scores are divided by {fitted.value:.4g}, fitted on {fitted.data}: their calibration error is "
        f"{own.error:.3f} without it, and {own.error_divided:.3f} where each half is judged at what the other fits. "
        "Judge the export on other pairs: lit-rlhf evaluate-reward."
    )
    return fitted


def newest(path: str) -> str:
    """Of the directory of a run or of its checkpoints the newest that is whole; any other path as it is."""
    inner = Path(path) / "checkpoints"
    directory = inner if inner.is_dir() else Path(path)
    found = IterationCheckpoint(str(directory)).newest_whole() if directory.is_dir() else None
    return str(found or path)
