"""What a backbone does with an architecture against plain transformers, one row at a time."""

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
    """A way's largest difference of a log-prob, or why it was refused."""

    gap: float
    refused: str = ""

    def cell(self, tolerance: float) -> str:
        """For the table."""
        if self.refused:
            return "refused"
        return "yes" if self.gap <= tolerance else f"**{self.gap:.2g} off**"


def batch() -> BranchedBatch:
    width = max(len(p) + sum(map(len, a)) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    made = (row(p, a, width) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    ids, owners, positions = (torch.tensor(column) for column in zip(*made, strict=True))
    return BranchedBatch(input_ids=ids, branch_ids=owners, position_ids=positions)


def branched(directory: Path, plain: object, branching: str, **options: object) -> Found:
    backbone = Backbone.load(ModelSpec(name=str(directory), branching=branching, **options))
    with torch.no_grad():
        out = backbone.eval()(batch(), num_branches=2, logprobs=True)
    wanted = [
        row_logprobs(plain, p, a)
        for p, answers in zip(PROMPTS, ANSWERS, strict=True)
        for a in answers
    ]
    return Found(max(_gap(out.logprobs[i, : len(x)], x) for i, x in enumerate(wanted)))


def decoded(directory: Path, plain: object, engine: RolloutEngine, **options: object) -> Found:
    backbone = Backbone.load(ModelSpec(name=str(directory), **options)).eval()
    backbone.eos_token_ids = ()
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in PROMPTS])
    mask = torch.arange(width) < torch.tensor([[len(p)] for p in PROMPTS])
    sampling = Sampling(max_new_tokens=12)
    request = RolloutRequest(Prompts(ids, mask), sampling, torch.arange(4), 2)
    out = engine.generate(backbone, request)
    gaps = [
        _gap(out.logprobs[i], row_logprobs(plain, PROMPTS[i // 2], out.tokens[i].tolist()))
        for i in range(4)
    ]
    return Found(max(gaps))


def exported(directory: Path, plain: object, out: Path, **options: object) -> Found:
    backbone = Backbone.load(ModelSpec(name=str(directory), **options))
    export_policy(backbone, out, merge=True)
    again = AutoModelForCausalLM.from_pretrained(out).eval()
    pairs = [(PROMPTS[0], ANSWERS[0][0]), (PROMPTS[1], ANSWERS[1][1])]
    return Found(max(_gap(row_logprobs(again, *x), row_logprobs(plain, *x)) for x in pairs))


def walk(directory: Path, out: Path, **options: object) -> dict[str, Found]:
    """Every way; a refusal is an error of the library."""
    dtype = getattr(torch, str(options.get("dtype", "float32")))
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    if not plain._supports_sdpa:
        options["attention"] = "eager"
    ways = {
        "expanded": lambda: branched(directory, plain, "expanded", **options),
        "shared": lambda: branched(directory, plain, "auto", **options),
        "forced": lambda: branched(directory, plain, "shared", **options),
        "native": lambda: decoded(directory, plain, NativeEngine(), **options),
        "hf": lambda: decoded(directory, plain, HFEngine(), **options),
        "exported": lambda: exported(directory, plain, out, **options),
    }
    found = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except LitRLHFError as error:
            found[name] = Found(0.0, " ".join(str(error).split()))
    return found


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())
