"""Generation with lit_rlhf's `NativeEngine`."""

import torch

from benchmarks.peers.processes import report
from benchmarks.workloads.arithmetic import Decoder
from benchmarks.workloads.generation import GREEDY_TOKENS, PROMPT_TOKENS, Ids, run
from benchmarks.workloads.peak import matmul_peaks
from benchmarks.workloads.settings import Settings
from benchmarks.workloads.shared import start
from lit_rlhf.models import Backbone, ModelSpec
from lit_rlhf.rollout import NativeEngine, RolloutRequest, Sampling
from lit_rlhf.types import Prompts


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    spec = ModelSpec(name=settings.model, dtype=settings.dtype)  # type: ignore[arg-type]
    backbone = Backbone.load(spec, trainable=False)
    backbone.eos_token_ids = ()  # where EOS ends a text, it is among the stop tokens
    engine = NativeEngine()

    def generate(prompts: Ids, step: int, greedy: bool) -> Ids:
        ids = torch.tensor(prompts)
        sampling = Sampling(
            max_new_tokens=GREEDY_TOKENS if greedy else settings.new_tokens,
            temperature=0.0 if greedy else 1.0,
            stop_token_ids=list(settings.stop_tokens),
        )
        seeds = torch.arange(len(prompts)) + step * len(prompts)
        given = Prompts(ids, torch.ones_like(ids, dtype=torch.bool))
        request = RolloutRequest(given, sampling, seeds, role="reference")
        out = engine.generate(backbone, request)
        return [row[mask].tolist() for row, mask in zip(out.tokens, out.mask, strict=True)]

    decoder = Decoder.from_directory(settings.model)
    result = run(settings, generate)
    phases = [{"rollout": seconds} for seconds in result["seconds"]]
    flops = [
        {"rollout": sum(decoder.generate(PROMPT_TOKENS, [n]) for n in lengths)}
        for lengths in result["lengths"]
    ]
    report({**result, "phases": phases, "flops": flops, "peaks": matmul_peaks()})


if __name__ == "__main__":
    main()
