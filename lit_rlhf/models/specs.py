"""What a model is and how it is loaded: plain dataclasses, so that they nest in YAML."""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from lit_rlhf.options import check_fields, check_option, is_whole

Quantization = Literal["none", "nf4", "fp4", "int8"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Branching = Literal["auto", "shared", "expanded"]
Kernels = Literal["auto", "plain"]
DTypeName = Literal["float32", "bfloat16", "float16"]
DTypeOption = Literal["auto", "float32", "bfloat16", "float16"]

_SAVED = "one in memory is saved first, by its save_pretrained(directory)"
_IN_WORDS = {
    "name": f"a directory or hub id of a model; {_SAVED}",
    "tokenizer": f"a directory or hub id of a tokenizer; {_SAVED}",
    "lora": "a LoraSpec or left out",
}


@dataclass
class LoraSpec:
    r"""Low-rank adapters, $W x + s B A x$ with $s = \alpha / r$ (arXiv:2106.09685).

    Attributes:
        rank: $r$, rows of A; 4 to 64. Memory and time grow with it, slowly.
        alpha: Numerator of the scale; the update's size in units of the learning rate. About twice the rank.
        dropout: Share of inputs dropped before A in training, 0 and up, below 1. In policy optimization it must be 0,
            for the ratio of an unchanged policy would differ from 1.
        target_modules: Names of the layers to adapt (last part of the path), or "all-linear": every linear layer of the
            decoder. The LM head can't be adapted.
        rslora: Scale by $\alpha / \sqrt{r}$ instead (arXiv:2312.03732), which keeps updates alike over ranks.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    rslora: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for valid, name, allowed in (
            (is_whole(self.rank, 1), "rank", "a whole number of at least 1"),
            (0 < self.alpha < inf, "alpha", "above 0"),
            (0 <= self.dropout < 1, "dropout", "at least 0, and below 1"),
        ):
            check_option(valid, self, name, getattr(self, name), allowed)


@dataclass
class ModelSpec:
    """A decoder, its tokenizer and how it is loaded, quantized and adapted.

    Attributes:
        name: Directory or hub id of a causal language model. Leave out to start from `config`.
        config: Random initialisation instead: `{"model_type": "llama", "hidden_size": 64, ...}`; needs `tokenizer`.
        tokenizer: Directory or hub id; default: `name`.
        revision: Branch, tag or commit on the hub.
        dtype: Of the base's weights; adapters, heads and losses are float32 whatever this says. "auto" is bfloat16
            where the device multiplies it and float32 elsewhere, which is said at loading; a loaded `Backbone.spec`
            holds what was taken.
        quantization: Of the base's linear layers through bitsandbytes, on CPU as well: nf4 and fp4 take about 0.5 bytes
            a weight (arXiv:2305.14314), int8 takes 1. Training then needs `lora`. Products with 4 bits are computed in
            `dtype`, and in bfloat16 on a GPU that multiplies it.
        lora: Adapters to train on a frozen base; None trains the model in full.
        adapter: Directory of a trained LoRA adapter that the policy starts from; its frozen copy is the reference.
        gradient_checkpointing: Recompute each layer in backward: less memory for a third more time.
        attention: Kernel. "sdpa" also serves grouped heads without copying keys; "flash_attention_2" needs a GPU.
        branching: How K branches of a prompt run: "shared" computes the prompt once, under a mask; "expanded" lays out
            K ordinary rows; "auto" picks the cheaper for each batch. The results agree.
        kernels: "auto" uses what is faster here where it fits: norms, adapters and attention of this library, and on
            CPU decoding by a copy of the weights, which takes their memory once more during rollouts. "plain" runs
            transformers and peft as they are. The results agree up to rounding.
        trust_remote_code: Run code that comes with the model. Off: such models are refused.
        init_seed: Seed of weights that aren't loaded: the model from `config`, adapters, heads.
    """

    name: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    revision: str | None = None
    dtype: DTypeOption = "float32"
    quantization: Quantization = "none"
    lora: LoraSpec | None = None
    adapter: str | None = None
    gradient_checkpointing: bool = False
    attention: Attention = "sdpa"
    branching: Branching = "auto"
    kernels: Kernels = "auto"
    trust_remote_code: bool = False
    init_seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, _IN_WORDS)
