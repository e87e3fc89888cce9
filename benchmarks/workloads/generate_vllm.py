"""Generation with vLLM on CPU, in this process."""

import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, its least: the keys and values of 64 sequences take 0.2
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no second process that waits on the same cores
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm import LLM, SamplingParams

from benchmarks.peers.processes import report
from benchmarks.workloads.generation import GREEDY_TOKENS, Ids, run
from benchmarks.workloads.settings import Settings


def main() -> None:
    settings = Settings.from_command_line()
    llm = LLM(
        model=settings.model,
        dtype=settings.dtype,
        max_model_len=256,
        max_num_seqs=settings.batch,
        seed=settings.seed,
        disable_log_stats=True,
    )

    def generate(prompts: Ids, step: int, greedy: bool) -> Ids:  # noqa: ARG001 - its randomness is the engine's
        sampling = SamplingParams(
            temperature=0.0 if greedy else 1.0,
            max_tokens=GREEDY_TOKENS if greedy else settings.new_tokens,
            stop_token_ids=list(settings.stop_tokens),
            ignore_eos=True,  # where EOS ends a text, it is among the stop tokens
            detokenize=False,
        )
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    report(run(settings, generate))


if __name__ == "__main__":
    main()
