"""What every part is given: device, shapes of the model, data, a trainer, clock and memory."""

import gc
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.quiet import quiet_trainer
from lit_rlhf.data import (
    DemonstrationDataModule,
    PreferenceDataModule,
    PromptDataModule,
    PromptOnly,
    RowsSource,
)
from lit_rlhf.files import whole_directory
from lit_rlhf.internals.transformers import drawn_once
from lit_rlhf.models import LoraSpec, ModelSpec
from lit_rlhf.models.loading import quiet
from lit_rlhf.testing import write_tiny_model
from lit_rlhf.tokenizers import load_tokenizer

Rows = list[dict[str, str]]
WORDS = ("film", "book", "song", "play", "meal", "walk", "game", "talk", "good", "bad", "was", "it")
DATA = {
    "sft": (DemonstrationDataModule, ("prompt", "completion"), {}),
    "pairs": (PreferenceDataModule, ("prompt", "chosen", "rejected"), {}),
    "prompts": (PromptDataModule, ("prompt",), {"format": PromptOnly(columns=[])}),
}


@dataclass(frozen=True)
class Size:
    """Shapes of a model and of the work.

    Attributes:
        config: Of the model, whose weights are random.
        prompt: Tokens of a prompt.
        response: Tokens of a response, and most of a completion.
        rows: Rows of a batch; pairs and prompts of policies are half as many.
        samples: Completions per prompt in GRPO.
        decode: Rows that are decoded at a time.
        steps: Steps that are run, of methods that sample: iterations. The first isn't counted.
        full: Whether the card can train all its weights.
    """

    config: dict[str, Any]
    prompt: int
    response: int
    rows: int
    samples: int
    decode: tuple[int, ...]
    steps: tuple[int, int]
    full: bool = True


def _qwen2(
    hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }


SIZES = {
    "tiny": Size(_qwen2(64, 128, 2, 4, 2, 512, True), 16, 8, 4, 2, (4,), (2, 2)),
    # Qwen2.5-0.5B and -7B
    "0.5b": Size(_qwen2(896, 4864, 24, 14, 2, 151936, True), 256, 128, 64, 8, (64, 256), (4, 2)),
    "7b": Size(
        _qwen2(3584, 18944, 28, 28, 4, 152064, False), 256, 128, 16, 8, (64, 256), (4, 2), False
    ),
}


@dataclass
class Setting:
    """A part's device, sizes and tools.

    Args:
        device: "cuda" or "cpu".
        size: Key of `SIZES`.
        work: Directory for what parts write; what one made, the others find.
        peak: FLOP/s that the part `machine` measured; 0 if it didn't run.
    """

    device: torch.device
    size: Size
    work: Path
    peak: float = 0.0

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def tiny(self) -> str:
        """Directory of a tiny llama with a tokenizer of bytes."""
        path = self.work / "tiny"
        return str(path if path.is_dir() else write_tiny_model(path))

    @cached_property
    def base(self) -> str:
        """Directory of random weights of this size in bfloat16: drawn once for all parts, on the device."""
        path = self.work / "base"
        if path.is_dir():
            return str(path)
        tokenizer = load_tokenizer(self.tiny)
        ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
        config = AutoConfig.for_model(**self.size.config, **ids)
        make = partial(AutoModelForCausalLM.from_config, config, dtype=torch.bfloat16)
        model = drawn_once(make, self.device)
        with whole_directory(path, "config.json") as directory, quiet():
            model.save_pretrained(directory)
        return str(path)

    def spec(self, **options: Any) -> ModelSpec:
        """The model of this size: bfloat16 with LoRA, unless the options say otherwise."""
        fixed: dict[str, Any] = {
            "name": self.base,
            "tokenizer": self.tiny,  # the data's
            "dtype": "bfloat16",
            "lora": LoraSpec(rank=16),
        }
        return ModelSpec(**(fixed | options))

    def rows(self, count: int) -> Rows:
        """Texts of the size's lengths: the tokenizer takes about each byte for a token."""
        size = self.size
        names = {"prompt": size.prompt, "completion": size.response}
        names |= {"chosen": size.response, "rejected": size.response}
        return [
            {name: _text(length, 4 * i + j) for j, (name, length) in enumerate(names.items())}
            for i in range(count)
        ]

    def data(self, kind: str, batch: int, rows: Rows) -> Any:
        """A DataModule of a kind in `DATA`."""
        module, columns, more = DATA[kind]
        return module(
            RowsSource([{name: row[name] for name in columns} for row in rows]),
            tokenizer=self.tiny,
            batch_size=batch,
            cache_dir=str(self.work / "cache"),
            **more,
        )

    def trainer(self, callbacks: list[Any], **options: Any) -> Trainer:
        """A quiet trainer on the device."""
        where = {"accelerator": "gpu" if self.on_gpu else "cpu", "default_root_dir": str(self.work)}
        return quiet_trainer(*callbacks, **(where | options))

    def now(self) -> float:
        """Seconds on a clock, once the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget(self) -> None:
        """Free what is no longer used, and count peak memory from here."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        """GiB of the peak since `forget`: taken by tensors, and by the allocator from the card."""
        if not self.on_gpu:
            return {}
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }


def _text(length: int, seed: int) -> str:
    words = (WORDS[(7 * seed + i * (1 + seed % 5)) % len(WORDS)] for i in range(length))
    return " ".join(words)[:length]
