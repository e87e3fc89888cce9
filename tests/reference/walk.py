"""What a backbone does with an architecture against plain transformers, one row at a time."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.models import Backbone, ModelSpec, export_policy
from lit_rlhf.rollout import HFEngine, NativeEngine, RolloutEngine, RolloutRequest, Sampling
from lit_rlhf.types import BranchedBatch, Prompts
from tests.reference.architectures import row_logprobs
from tests.reference.branches import row

PROMPTS = ([5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45], [7, 8, 9])
ANSWERS = (([51, 55, 59, 63, 67, 71, 75, 79, 83], [52, 56]), ([60, 64, 68], [91, 95, 99, 103]))
"""Row by row longer than any window and switch of the tiny configs (8 and 16), and shorter."""


class Found(NamedTuple):
    """A way's largest difference of a log-prob, or how many times as far from float32 it is; or why it was refused."""

    gap: float
    refused: str = ""

    def cell(self, tolerance: float) -> str:
        """For the table."""
        if self.refused:
            return "refused"
        return "yes" if self.gap <= tolerance else f"**{self.gap:.2g} off**"


class Answer(NamedTuple):
    """What a way says of an answer's tokens."""

    logprobs: Tensor
    prompt: Sequence[int]
    tokens: Sequence[int]


Judge = Callable[[Sequence[Answer]], float]


def largest_gap(plain: object) -> Judge:
    """The largest difference of a log-prob from a plain model's."""
    return lambda answers: max(
        float((given - row_logprobs(plain, prompt, tokens)).abs().max())
        for given, prompt, tokens in answers
    )


def times_the_rounding(plain: object, exact: object) -> Judge:
    """How many times as far from a float32 model a way is as a plain one in its dtype, in the mean square of tokens."""

    def judge(answers: Sequence[Answer]) -> float:
        ours, theirs = [], []
        for given, prompt, tokens in answers:
            right = row_logprobs(exact, prompt, tokens)
            ours.append(given - right)
            theirs.append(row_logprobs(plain, prompt, tokens) - right)
        return float(torch.cat(ours).norm() / torch.cat(theirs).norm())

    return judge


def batch() -> BranchedBatch:
    width = max(len(p) + sum(map(len, a)) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    made = (row(p, a, width) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    ids, owners, positions = (torch.tensor(column) for column in zip(*made, strict=True))
    return BranchedBatch(input_ids=ids, branch_ids=owners, position_ids=positions)


def branched(directory: Path, branching: str, **options: object) -> list[Answer]:
    backbone = Backbone.load(ModelSpec(name=str(directory), branching=branching, **options))
    with torch.no_grad():
        out = backbone.eval()(batch(), num_branches=2, logprobs=True)
    pairs = [(p, a) for p, answers in zip(PROMPTS, ANSWERS, strict=True) for a in answers]
    return [Answer(out.logprobs[i, : len(a)], p, a) for i, (p, a) in enumerate(pairs)]


def decoded(directory: Path, engine: RolloutEngine, **options: object) -> list[Answer]:
    backbone = Backbone.load(ModelSpec(name=str(directory), **options)).eval()
    backbone.eos_token_ids = ()
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in PROMPTS])
    mask = torch.arange(width) < torch.tensor([[len(p)] for p in PROMPTS])
    sampling, seeds = Sampling(max_new_tokens=12), torch.arange(8 * len(PROMPTS))
    out = engine.generate(backbone, RolloutRequest(Prompts(ids, mask), sampling, seeds, 8))
    rows = zip(out.logprobs, out.tokens.tolist(), strict=True)
    return [Answer(given, PROMPTS[i // 8], tokens) for i, (given, tokens) in enumerate(rows)]


def exported(directory: Path, out: Path, **options: object) -> list[Answer]:
    backbone = Backbone.load(ModelSpec(name=str(directory), **options))
    export_policy(backbone, out, merge=True)
    again = AutoModelForCausalLM.from_pretrained(out).eval()
    pairs = [(PROMPTS[0], ANSWERS[0][0]), (PROMPTS[1], ANSWERS[1][1])]
    return [Answer(row_logprobs(again, *pair), *pair) for pair in pairs]


def walk(directory: Path, out: Path, **options: object) -> dict[str, Found]:
    """Every way against plain transformers, in bfloat16 against what that rounds. A refusal is the library's error."""
    dtype = getattr(torch, str(options.get("dtype", "float32")))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    judge = largest_gap(plain)
    if dtype != torch.float32:
        judge = times_the_rounding(plain, copy.deepcopy(plain).float())
    if not plain._supports_sdpa:
        options["attention"] = "eager"
    ways = {
        "expanded": lambda: branched(directory, "expanded", **options),
        "shared": lambda: branched(directory, "auto", **options),
        "forced": lambda: branched(directory, "shared", **options),
        "native": lambda: decoded(directory, NativeEngine(), **options),
        "hf": lambda: decoded(directory, HFEngine(), **options),
        "exported": lambda: exported(directory, out, **options),
    }
    found = {}
    for name, way in ways.items():
        try:
            found[name] = Found(judge(way()))
        except LitRLHFError as error:
            found[name] = Found(0.0, " ".join(str(error).split()))
    return found
