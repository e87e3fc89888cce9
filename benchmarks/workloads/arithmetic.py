"""How much arithmetic a workload needs: FLOPs of a decoder, a multiplication and an addition each counted.

What is counted is what the cheapest exact computation needs: a prompt once for all of its branches, the LM head at
response positions alone, a frozen base without gradients of its weights, attention to visible positions alone, nothing
recomputed, no padding. Softmax, norms, rotary positions and the optimizer are left out. Standard library alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Decoder:
    """Shape of a Llama-like decoder and of its adapters.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        intermediate: Width of the gated MLP.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocabulary: Rows of the LM head.
        rank: Of LoRA on all linear layers; 0: none, the base is trained.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rank: int = 0

    @staticmethod
    def from_config(config: dict[str, Any], rank: int = 0) -> "Decoder":
        """Of a transformers config as a dictionary."""
        heads = int(config["num_attention_heads"])
        return Decoder(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            rank=rank,
        )

    @staticmethod
    def from_directory(model: str | Path, rank: int = 0) -> "Decoder":
        """Of a model's directory."""
        return Decoder.from_config(
            json.loads((Path(model) / "config.json").read_text(encoding="utf-8")), rank
        )

    def _layer_shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's products: query, key, value, output, gate, up, down."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        narrow, wide = self.hidden, self.intermediate
        attention = [(narrow, query), (narrow, key), (narrow, key), (query, narrow)]
        return [*attention, (narrow, wide), (narrow, wide), (wide, narrow)]

    @property
    def linear(self) -> int:
        """Weights that each token is multiplied with, the LM head's apart."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self._layer_shapes())

    @property
    def adapters(self) -> int:
        """Weights of the adapters."""
        return self.layers * self.rank * sum(map(sum, self._layer_shapes()))

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.hidden * self.vocabulary

    def attention(self, prompt: float, branches: Sequence[float]) -> float:
        """Forward FLOPs of attention of one row: scores and weighted sums over visible positions."""
        pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in branches)
        return 4.0 * self.layers * self.heads * self.head_dim * pairs

    def forward(
        self, prompt: float, branches: Sequence[float], scored: float, *, adapted: bool = True
    ) -> float:
        """FLOPs of a forward pass over one row.

        Args:
            prompt: Tokens of the prompt.
            branches: Tokens of each branch.
            scored: Positions that go through the LM head.
            adapted: Whether adapters are on.
        """
        tokens = prompt + sum(branches)
        weights = self.linear + (self.adapters if adapted else 0)
        return 2.0 * weights * tokens + 2.0 * self.head * scored + self.attention(prompt, branches)

    def train(self, prompt: float, branches: Sequence[float], scored: float) -> float:
        """FLOPs of forward and backward over one row: gradients of activations, and of the weights that are trained."""
        tokens = prompt + sum(branches)
        activations = self.forward(prompt, branches, scored) + self.attention(prompt, branches)
        trained = self.adapters if self.rank else self.linear
        weights = 2.0 * trained * tokens + (0.0 if self.rank else 2.0 * self.head * scored)
        return self.forward(prompt, branches, scored) + activations + weights

    def generate(self, prompt: float, completions: Sequence[float]) -> float:
        """FLOPs of sampling completions of a prompt that is computed once: each token but the last is fed back."""
        fed = [max(n - 1, 0.0) for n in completions]
        return self.forward(prompt, fed, sum(completions))
