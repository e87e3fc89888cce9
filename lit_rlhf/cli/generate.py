"""`lit-rlhf generate`: sample completions from a policy."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli

from lit_rlhf.cli.output import write_rows
from lit_rlhf.data import FileSource, PromptDataModule, PromptOnly, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, load_checkpoint_backbone
from lit_rlhf.models.adapters import read_adapter
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.rollout import NativeEngine, RolloutEngine, Sampling
from lit_rlhf.seeding import sample_seeds


def generate(
    model: str,
    prompts: str | None = None,
    prompt: str | None = None,
    output: Path | None = None,
    prompt_column: str = "prompt",
    sampling: Sampling | None = None,
    engine: RolloutEngine | None = None,
    num_samples: int = 1,
    batch_size: int = 32,
    dtype: DTypeName = "float32",
    seed: int = 0,
) -> None:
    """Sample completions from a policy.

    Args:
        model: A causal language model (directory or hub id), an exported adapter, or a checkpoint (.ckpt).
        prompts: JSONL, JSON, CSV or Parquet with a prompt in each row.
        prompt: One prompt, instead of a file.
        output: JSONL to write, the rows with a column `response`; default: standard output.
        prompt_column: Column of the prompt; text, or messages that the chat template renders.
        sampling: Length limit, temperature, top-k, top-p; temperature 0 takes the likeliest token.
        engine: Default `NativeEngine`.
        num_samples: Completions of each prompt.
        batch_size: Prompts that are completed together.
        dtype: Of the model's weights.
        seed: The same seed gives the same completions.
    """
    if (prompts is None) == (prompt is None):
        raise ConfigurationError("Give either --prompts FILE or --prompt TEXT.")
    backbone = _policy(model, dtype)
    source = FileSource(prompts) if prompts is not None else RowsSource([{prompt_column: prompt}])
    data = PromptDataModule(
        test=source,
        tokenizer=backbone.tokenizer,
        format=PromptOnly(prompt_column, columns=[]),
        invalid="error",
        batch_size=batch_size,
    )
    data.prepare_data()
    data.setup("test")
    responses: dict[int, list[str]] = {}
    for batch in data.test_dataloader():
        mask = batch["branch_ids"] == 0
        which = batch["index"].repeat_interleave(num_samples) * num_samples
        which = which + torch.arange(num_samples).repeat(len(batch["index"]))
        found = (engine or NativeEngine()).generate(
            backbone,
            batch["input_ids"],
            mask,
            sampling=sampling or Sampling(),
            seeds=sample_seeds(seed, 0, "generate", which),
            num_samples=num_samples,
        )
        texts = [
            str(backbone.tokenizer.decode(tokens[kept], skip_special_tokens=True))
            for tokens, kept in zip(found.tokens, found.mask, strict=True)
        ]
        for i, index in enumerate(batch["index"].tolist()):
            responses[index] = texts[i * num_samples : (i + 1) * num_samples]
    rows = (({**row, "response": text}) for i, row in enumerate(source.load()) for text in responses[i])
    write_rows(rows, output)


def _policy(model: str, dtype: DTypeName) -> Backbone:
    if model.endswith(".ckpt"):
        return load_checkpoint_backbone(model, dtype=dtype)
    if not (Path(model) / "adapter_config.json").is_file():
        return Backbone(ModelSpec(name=model, dtype=dtype), trainable=False).eval()
    config, _ = read_adapter(model)
    base = config.base_model_name_or_path
    backbone = Backbone(ModelSpec(name=base, tokenizer=model, dtype=dtype, lora=LoraSpec()), trainable=False)
    backbone.add_adapter("policy", path=model, trainable=False)
    return backbone.eval()


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    auto_cli(generate, as_positional=False, args=list(words[1:]), prog="lit-rlhf generate")
