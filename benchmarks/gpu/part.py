"""One part in a process of its own: it imports all, says so, waits for a line on its input, then works.

python -m benchmarks.gpu.part NAME DEVICE SIZE DIRECTORY WORK
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import training
from benchmarks.gpu.correct import export, precisions, resume, same_as_cpu
from benchmarks.gpu.decoding import decoding
from benchmarks.gpu.machine import machine
from benchmarks.gpu.result import Result
from benchmarks.gpu.setting import SIZES, Setting
from benchmarks.gpu.waits import waits
from benchmarks.quiet import silence

ALONE = (machine, same_as_cpu, resume, export, precisions, decoding, waits)
PARTS: dict[str, Callable[[Setting, Result], None]] = {
    part.__name__: part for part in ALONE
} | training.PARTS


def main() -> None:
    name, device, size, directory, work = sys.argv[1:]
    silence()
    print("ready", flush=True)
    os.dup2(2, 1)  # the rest goes to the log
    sys.stdin.readline()
    out = Path(directory)
    measured = out / "machine.json"
    setting = Setting(torch.device(device), SIZES[size], Path(work))
    if name != "machine" and measured.is_file():
        setting.peak = Result.read(measured).measures["bf16 product"]["tflops"] * 1e12
    result = Result()
    result.keep_in(out / f"{name}.json")
    with result.attempt(name):
        PARTS[name](setting, result)


if __name__ == "__main__":
    main()
