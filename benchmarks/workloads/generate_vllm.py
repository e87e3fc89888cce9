"""Generation with vLLM on CPU, in this process: as two, it would keep one of two cores for its scheduler."""

import os
import sys
from ctypes.util import find_library
from pathlib import Path

from benchmarks.peers.processes import report
from benchmarks.workloads.generation import GREEDY_TOKENS, Ids, run
from benchmarks.workloads.settings import Settings
from benchmarks.workloads.shared import start

_SETUP = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, its least: the keys and values of 64 sequences take 0.2
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_AOT_COMPILE": "0",  # with torch 2.13 it can't load what it saved: a minute more in every run
}


def begin_anew() -> None:
    """Replace this process by one with vLLM's libraries preloaded: Intel's OpenMP, tcmalloc if there is one."""
    openmp, allocator = Path(sys.prefix) / "lib" / "libiomp5.so", find_library("tcmalloc_minimal")
    wanted = [str(openmp)] * openmp.is_file() + [allocator] * (allocator is not None)
    environment = {**os.environ, **_SETUP, "LD_PRELOAD": ":".join(wanted)}
    os.execve(
        sys.executable,
        [sys.executable, "-m", "benchmarks.workloads.generate_vllm", *sys.argv[1:]],
        environment,
    )


def main() -> None:
    if "LD_PRELOAD" not in os.environ:
        begin_anew()
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - reads the environment when imported

    settings = Settings.from_command_line()
    start(settings)
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
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    report(run(settings, generate))


if __name__ == "__main__":
    main()
