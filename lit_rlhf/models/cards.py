"""What an export holds beside weights: a record of itself and a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lit_rlhf import __version__
from lit_rlhf.errors import CheckpointError
from lit_rlhf.prompt_form import PromptForm

RECORD = "lit_rlhf.json"


@dataclass(frozen=True)
class Temperature:
    """What a reward model's scores are divided by, so that the sigmoid of a difference is a probability.

    Attributes:
        value: T, above 0.
        data: What it was fitted on, in words.
        pairs: Those pairs, as `evaluation.comparisons.sketch_pairs` writes them.
    """

    value: float
    data: str
    pairs: str


@dataclass(frozen=True)
class ExportRecord:
    """What an export says of itself, in `lit_rlhf.json`.

    Attributes:
        kind: A policy or a reward model.
        form: A whole model or an adapter.
        base: The model it was trained from; an adapter needs it.
        tokenizer: Fingerprint of its tokenizer.
        score_mean: Of the scores on held-out data: subtract it, then divide by `score_std`.
        score_std: See `score_mean`.
        note: What was exported of a model that has more.
        prompts: How the prompts that it was trained on were written, where that is known.
        temperature: What the scores of training were divided by: those of this export, their mean and their deviation.
        fitted_on: See `Temperature.data`.
        fitted_pairs: See `Temperature.pairs`.
    """

    kind: Literal["policy", "reward"]
    form: Literal["model", "adapter"]
    base: str | None
    tokenizer: str
    score_mean: float = 0.0
    score_std: float = 1.0
    note: str = ""
    prompts: PromptForm | None = None
    temperature: float = 1.0
    fitted_on: str = ""
    fitted_pairs: str = ""

    def write(self, directory: Path) -> None:
        """Write it, with the library's version."""
        text = json.dumps({**asdict(self), "version": __version__}, indent=2)
        (directory / RECORD).write_text(text + "\n", encoding="utf-8")
        (directory / "README.md").write_text(model_card(self), encoding="utf-8")


def read_record(directory: Path) -> Mapping[str, object]:
    """The record of an export; empty where there is none."""
    file = directory / RECORD
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{file} can't be read, the export may be torn: {error}. Export it anew."
        ) from error
    return dict(record)


def recorded_prompts(record: Mapping[str, Any]) -> PromptForm | None:
    """How the prompts of a model's training were written, by the record of an export or of a checkpoint."""
    prompts = record.get("prompts")
    return None if prompts is None else PromptForm(**prompts)


def model_card(
    record: ExportRecord,
    name: str = "<this directory>",
    training: Sequence[str] = (),
    license_name: str | None = None,
) -> str:
    """Text of the export's README.md.

    Args:
        record: What the export says of itself.
        name: What it is loaded by.
        training: Lines of Markdown on how it came to be.
        license_name: By the hub's names.
    """
    library = "peft" if record.form == "adapter" else "transformers"
    task = "text-classification" if record.kind == "reward" else "text-generation"
    header = ["---", f"library_name: {library}", f"pipeline_tag: {task}"]
    header += ["tags:", "- lit_rlhf", f"- {'reward-model' if record.kind == 'reward' else 'rlhf'}"]
    header += [f"license: {license_name}"] if license_name else []
    if record.base is not None and not Path(record.base).is_absolute():
        header.append(f"base_model: {record.base}")
    base = record.base or "a model that is on no hub"
    what = "Reward model" if record.kind == "reward" else "Policy"
    body = [f"# {what}", "", f"Trained from {base} with lit_rlhf {__version__}.", *training, ""]
    body += ["## Use", "", "```python", _usage(record, name), "```"]
    if record.kind == "reward":
        body += [
            *(["", record.note] if record.note else []),
            "",
            "The score is read at the last token, so texts end with the EOS token if they did in training.",
            "Padding is on the right, with the pad token of the tokenizer here.",
            "",
            f"Scores on held-out data had mean {record.score_mean:.6g} and standard deviation {record.score_std:.6g};",
            "only their differences between answers to one prompt mean something.",
        ]
        if record.fitted_on:
            body += [
                "",
                f"They are those of training divided by {record.temperature:.4g}, fitted on {record.fitted_on}:",
                "the sigmoid of a difference is the probability that a rater prefers the first answer.",
            ]
    return "\n".join([*header, "---", "", *body]) + "\n"


def _usage(record: ExportRecord, name: str) -> str:
    is_reward = record.kind == "reward"
    auto = "AutoModelForSequenceClassification" if is_reward else "AutoModelForCausalLM"
    imported = f"from transformers import {auto}, AutoTokenizer"
    lines = [imported, "", f'tokenizer = AutoTokenizer.from_pretrained("{name}")']
    if record.form == "model":
        return "\n".join([*lines, f'model = {auto}.from_pretrained("{name}")'])
    extra = ", num_labels=1" if record.kind == "reward" else ""
    lines.insert(0, "from peft import PeftModel")
    lines += [
        f'base = {auto}.from_pretrained("{record.base or "<the base>"}"{extra})',
        f'model = PeftModel.from_pretrained(base, "{name}")',
    ]
    if record.kind == "reward":
        lines.append("model.config.pad_token_id = tokenizer.pad_token_id")
    return "\n".join(lines)
