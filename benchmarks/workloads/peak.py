"""What the machine reaches in a plain matrix product: the yardstick of utilisation. Needs torch alone.

`python -m benchmarks.workloads.peak <threads>` reports it.
"""

import sys
import time

import torch

from benchmarks.peers.processes import report

_SIZES = (1024, 2048, 4096)
_SECONDS = 0.4
DTYPES = ("float32", "bfloat16")


def matmul_peaks() -> dict[str, float]:
    """FLOP/s by dtype, with the threads that torch has: the best product of two square matrices of several sizes."""
    return {name: max(_best(size, getattr(torch, name)) for size in _SIZES) for name in DTYPES}


@torch.no_grad()
def _best(size: int, dtype: torch.dtype) -> float:
    inputs, weight = (torch.rand(size, size).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        torch.nn.functional.linear(inputs, weight)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    report({"peaks": matmul_peaks()})


if __name__ == "__main__":
    main()
