"""Generation with `transformers.generate`: sampling from the whole distribution, as the others do."""

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.processes import report
from benchmarks.workloads.generation import GREEDY_TOKENS, Ids, cut, run
from benchmarks.workloads.settings import Settings
from benchmarks.workloads.shared import start


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    model = AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=getattr(torch, settings.dtype)
    ).eval()
    stops = list(settings.stop_tokens)
    # Without an end, nothing is checked at each step.
    model.generation_config.eos_token_id = stops or None
    pad = model.config.pad_token_id or 0

    @torch.inference_mode()
    def generate(prompts: Ids, step: int, greedy: bool) -> Ids:  # noqa: ARG001 - its randomness is torch's global
        ids = torch.tensor(prompts)
        choice = (
            {"do_sample": False}
            if greedy
            else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        )
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GREEDY_TOKENS if greedy else settings.new_tokens,
            pad_token_id=pad,
            **choice,
        )
        return [cut(row, stops) for row in output[:, ids.shape[1] :].tolist()]

    report(run(settings, generate))


if __name__ == "__main__":
    main()
