"""What each lever is worth, with it and without it in turns in one process: `python benchmarks/levers.py`.

SmolLM2-135M in bfloat16 with LoRA on all linear layers, on the rows of `compare.py`. Beside the times stands how far
the two ways' results lie apart, as a check that both did the same; that they are equal is shown in float32 by the
tests.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

# As a script, Python looks in this file's directory alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.comparison.inputs import Inputs, add_places, make_inputs
from benchmarks.comparison.results import ratio
from benchmarks.markdown import find_place, insert, table
from benchmarks.workloads.settings import TARGETS
from benchmarks.workloads.shared import fill_adapters
from lit_rlhf.data import PreferenceDataModule, RowsSource
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.models.kernels import attention
from lit_rlhf.models.kernels.lora import RoleLinear
from lit_rlhf.models.kernels.norms import LeanLlamaRMSNorm
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling, native
from lit_rlhf.rollout.steps import EAGER
from lit_rlhf.types import BranchedBatch, Generation, Prompts

PAIRS = 8
PROMPTS, SAMPLES, NEW_TOKENS = 4, 8, 32
SPREAD_STOPS = list(range(1000, 3500))  # of 49,152 ids: completions end here and there


@dataclass(frozen=True)
class Lever:
    """Two ways to the same result.

    Attributes:
        name: What is done, and on what.
        used: With the lever.
        unused: Without.
    """

    name: str
    used: Callable[[], Tensor]
    unused: Callable[[], Tensor]


def under(context: AbstractContextManager[Any], work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Work that is done within a context."""

    def do() -> Tensor:
        with context:
            return work()

    return do


class Subject:
    """The model and a batch of each kind."""

    def __init__(self, inputs: Inputs) -> None:
        self.spec = ModelSpec(
            name=str(inputs.model),
            dtype="bfloat16",
            branching="shared",
            lora=LoraSpec(rank=16, alpha=32.0, target_modules=TARGETS),
        )
        self.backbone = self.built(self.spec)
        rows = inputs.settings("dpo", {"data": "pairs", "batch": PAIRS, "steps": 1}, 1).rows()
        data = PreferenceDataModule(RowsSource(rows), tokenizer=str(inputs.model), batch_size=PAIRS)
        data.prepare_data()
        data.setup("fit")
        self.pairs: BranchedBatch = next(iter(data.train_dataloader()))
        ids = self.pairs["input_ids"][:PROMPTS]  # rows begin with their prompts
        width = int((self.pairs["branch_ids"][:PROMPTS] == 0).sum(-1).min())
        self.prompts = ids[:, :width]

    def built(self, spec: ModelSpec) -> Backbone:
        """The policy, its adapter away from the identity."""
        backbone = Backbone.load(spec)
        backbone.add_adapter("policy")
        fill_adapters(backbone.named_parameters(), 0)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 1e-3)
        backbone.eos_token_ids = ()
        return backbone

    def train(self, backbone: Backbone) -> Tensor:
        """Log-probs of the pairs, and the norm of each gradient of their sum."""
        backbone.zero_grad(set_to_none=True)
        out = backbone(self.pairs, num_branches=2, logprobs=True)
        assert out.logprobs is not None
        out.logprobs.sum().backward()  # type: ignore[no-untyped-call]
        norms = [p.grad.norm() for p in backbone.parameters() if p.grad is not None]
        return torch.cat([out.logprobs.detach().sum(-1), torch.stack(norms)])

    def generate(
        self, engine: NativeEngine, *, samples: int = SAMPLES, stops: Sequence[int] = ()
    ) -> Tensor:
        """Mean log-prob of what is generated, one number: bfloat16 may tip single tokens."""
        ids = self.prompts.repeat_interleave(SAMPLES // samples, 0)
        prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool))
        sampling = Sampling(max_new_tokens=NEW_TOKENS, stop_token_ids=list(stops))
        request = RolloutRequest(prompts, sampling, torch.arange(PROMPTS * SAMPLES), samples)
        out: Generation = engine.generate(self.backbone, request)
        assert out.logprobs is not None
        return out.logprobs.sum() / out.mask.sum()

    def levers(self) -> list[Lever]:
        """All of them."""
        expanded = self.built(ModelSpec(**{**vars(self.spec), "branching": "expanded"}))
        theirs = self.built(self.spec)
        theirs.model.set_attn_implementation("sdpa")
        wide = self.built(ModelSpec(**{**vars(self.spec), "dtype": "float32"}))
        train = partial(self.train, self.backbone)
        generate = partial(self.generate, NativeEngine())
        vary = partial(self.generate, NativeEngine(), stops=SPREAD_STOPS)
        products = patch.object(attention, "pays", return_value=False)
        autograd = patch.object(RoleLinear, "_is_plain", return_value=False)
        their_norms = patch.object(LeanLlamaRMSNorm, "forward", LlamaRMSNorm.forward)
        unpacked = patch.object(self.backbone.spec, "kernels", "plain")
        staying = patch.object(native, "pace_of", lambda _: EAGER._replace(worth_leaving=0))
        return [
            Lever("prompts once for both branches, update of pairs", train, partial(self.train, expanded)),
            Lever("grouped attention, prompts and branches apart, update of pairs", train, partial(self.train, theirs)),
            Lever("bfloat16 base under float32 adapters, update of pairs", train, partial(self.train, wide)),
            Lever("attention by whole products, update of pairs", train, under(products, train)),
            Lever("adapted layers with a backward of their own, update of pairs", train, under(autograd, train)),
            Lever("norms with a backward of their own, update of pairs", train, under(their_norms, train)),
            Lever("LM head on responses alone, log-probs of pairs", self._responses, self._all_positions),
            Lever("prompts once for 8 samples, generation", generate, partial(generate, samples=1)),
            Lever("packed weights, generation", generate, under(unpacked, generate)),
            Lever("finished rows leave, generation of varied lengths", vary, under(staying, vary)),
        ]  # fmt: skip

    @torch.no_grad()
    def _responses(self) -> Tensor:
        out = self.backbone(self.pairs, num_branches=2, logprobs=True)
        return out.logprobs.sum(-1)  # type: ignore[union-attr]

    @torch.no_grad()
    def _all_positions(self) -> Tensor:
        with self.backbone.use_role("policy"):
            states = self.backbone._runner(self.pairs, 2)  # noqa: SLF001
        weight = self.backbone.model.get_output_embeddings().weight
        every = F.linear(states.hidden, weight).float().log_softmax(-1)
        logprobs = every[states.source, states.tokens]
        return (logprobs * states.mask).sum(-1)


def measure(lever: Lever, pairs: int) -> dict[str, Any]:
    """Seconds of both ways in turns, and how far their results lie apart."""
    results = lever.used(), lever.unused()  # warm-up too
    seconds: tuple[list[float], list[float]] = ([], [])
    ways = list(zip((lever.used, lever.unused), seconds, strict=True))
    for turn in range(pairs):
        for way, into in ways if turn % 2 == 0 else reversed(ways):
            start = time.perf_counter()
            way()
            into.append(time.perf_counter() - start)
    apart = ((results[0] - results[1]).abs() / results[1].abs().clamp_min(1.0)).max()
    return {
        "lever": lever.name,
        "used": median(seconds[0]),
        "unused": median(seconds[1]),
        "ratio": ratio(*reversed(seconds)),
        "apart": float(apart),
    }


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    cells = [
        [
            row["lever"],
            f"{row['used']:.2f}",
            f"{row['unused']:.2f}",
            "**{median:.2f}** ({min:.2f} to {max:.2f})".format(**row["ratio"]),
            f"{row['apart']:.1e}",
        ]
        for row in rows
    ]
    times = "times as fast (least to most of a pair)"
    return table(["lever", "with it, s", "without, s", times, "results apart by"], cells)


def main(args: Sequence[str] | None = None) -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python benchmarks/levers.py", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each way")
    only = "levers whose name holds this text"
    parser.add_argument("--only", default="", metavar="TEXT", help=only)
    add_places(parser)
    options = parser.parse_args(args)
    if options.only and options.markdown is not None:
        parser.error("--markdown takes the whole table: leave --only out.")
    if options.markdown is not None:
        find_place(options.markdown, "levers")  # before the work, not after it
    torch.set_num_threads(options.threads)
    rows = []
    for lever in Subject(make_inputs(options.root, options.work / "inputs")).levers():
        if options.only in lever.name:
            rows.append(measure(lever, options.pairs))
            print(shown(rows[-1:]).splitlines()[-1], flush=True)
    text = shown(rows)
    if options.markdown is not None:
        insert(options.markdown, "levers", text)


if __name__ == "__main__":
    main()
