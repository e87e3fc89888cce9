"""From the GGUF file of a Llama-type model to a directory that `from_pretrained` loads in bf16."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

# What the loader writes into the config about the file it read; none of it holds for the converted model.
_STALE_KEYS = (
    "quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "architectures",
    "transformers_version",
)  # fmt: skip


def convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantize a GGUF file and save it as an ordinary bf16 model with its tokenizer and chat template.

    transformers refuses to save a model it loaded from GGUF, so the weights go through a fresh model whose config
    doesn't mention the quantization.

    Args:
        gguf: The file; a Llama architecture is expected.
        target: The directory to write: `config.json`, `model.safetensors` and the tokenizer's files.
    """
    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = source.config.to_dict()
    settings = {key: value for key, value in config.items() if key not in _STALE_KEYS}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    model.generation_config = source.generation_config
    model.bfloat16().save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
