"""Where the time goes: seconds by phase, tokens per second, and the share of the hardware's arithmetic that is used."""

import math
import time
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.modules.phases import Phases

_OUTSIDE = "outside iterations"
_OTHER = "other"
_UPDATE = "update"


class PhaseTimer(Callback):
    r"""Logs how long each phase of an iteration took, and how much got done in it.

    For policies: `train/time/<phase>` in seconds (rollout, reward, reference, update, other; their sum is
    `train/time/iteration`), `train/throughput/generated_tokens_per_second` over the rollout and
    `train/throughput/trained_tokens_per_second` over the update. Other modules have one phase, the update. With a peak,
    `train/throughput/mfu` is the model-FLOPs utilisation of the update (arXiv:2204.02311, appendix B): a token costs
    $4N + 2N_\text{trainable}$ FLOPs there (forward, gradients of activations, gradients of weights), so $6N$ in full
    fine-tuning and about $4N$ with LoRA; attention, recomputed activations and padding are not counted. Tokens are
    those of all processes.

    Args:
        peak_flops: FLOP/s of one device at the precision of training, from its data sheet (without sparsity); `measure`
            takes what a large matrix product reaches on it; None logs no utilisation.
        summary: Print a table of all phases when training ends.

    Raises:
        ConfigurationError: The peak is not positive.
    """

    def __init__(self, peak_flops: float | Literal["measure"] | None = None, summary: bool = False) -> None:
        if isinstance(peak_flops, int | float) and peak_flops <= 0:
            raise ConfigurationError(f"peak_flops={peak_flops} must be positive: FLOP/s of one device, such as 312e12.")
        self.peak_flops = peak_flops
        self.summary = summary
        self.totals: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self._peak: float | None = None
        self._flops_per_token = 0.0
        self._began = self._ended = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count parameters, and measure the peak where asked."""
        self.totals, self.tokens = {}, {}
        self._flops_per_token = update_flops_per_token(pl_module)
        self._peak = measure_peak_flops(pl_module.device) if self.peak_flops == "measure" else self.peak_flops
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """An iteration begins."""
        self._began = time.perf_counter()
        self._add({_OUTSIDE: self._began - self._ended})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the iteration's seconds and throughput."""
        self._ended = time.perf_counter()
        iteration = self._ended - self._began
        phases = getattr(pl_module, "phases", None)
        if isinstance(phases, Phases):
            seconds, tokens = dict(phases.seconds), dict(phases.tokens)
            seconds[_OTHER] = iteration - sum(seconds.values())
        else:
            seconds, tokens = {_UPDATE: iteration}, {_UPDATE: _num_tokens(batch) * trainer.world_size}
        self._add(seconds)
        for name, count in tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count
        logged = {f"time/{name}": value for name, value in seconds.items()} | {"time/iteration": iteration}
        logged |= self._throughput(seconds, tokens, trainer.world_size)
        pl_module.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, if asked."""
        if self.summary and trainer.is_global_zero:
            Console().print(self.table())

    def table(self) -> Table:
        """Seconds, share and tokens per second of each phase over the whole run."""
        table = Table("phase", "seconds", "share", "tokens/s", title="Time by phase")
        whole = sum(self.totals.values()) or 1.0
        for name, seconds in sorted(self.totals.items(), key=lambda item: -item[1]):
            rate = f"{self.tokens[name] / seconds:,.0f}" if self.tokens.get(name) and seconds > 0 else ""
            table.add_row(name, f"{seconds:.1f}", f"{seconds / whole:.0%}", rate)
        return table

    def _add(self, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def _throughput(self, seconds: dict[str, float], tokens: dict[str, int], world_size: int) -> dict[str, float]:
        rates = {}
        for phase, name in (("rollout", "generated"), (_UPDATE, "trained")):
            if tokens.get(phase) and seconds.get(phase):
                rates[f"throughput/{name}_tokens_per_second"] = tokens[phase] / seconds[phase]
        trained = rates.get("throughput/trained_tokens_per_second")
        if self._peak is not None and trained is not None:
            rates["throughput/mfu"] = trained * self._flops_per_token / (float(self._peak) * world_size)
        return rates


def update_flops_per_token(module: torch.nn.Module) -> float:
    """FLOPs of a forward and backward pass per token: 4 for each parameter, and 2 more for each that is trained.

    Example:
        >>> update_flops_per_token(torch.nn.Linear(10, 10, bias=False))
        600.0
    """
    sizes = [(_num_weights(parameter), parameter.requires_grad) for parameter in module.parameters()]
    return float(sum(size * (6 if trained else 4) for size, trained in sizes))


def measure_peak_flops(device: torch.device, size: int | None = None) -> float:
    """FLOP/s of a product of two square matrices, the best of five: bfloat16 on accelerators, float32 on CPU.

    Args:
        device: Where to measure.
        size: Rows of the matrices; default 8192 on accelerators, 1024 on CPU.
    """
    on_cpu = device.type == "cpu"
    size = size or (1024 if on_cpu else 8192)
    matrix = torch.ones(size, size, device=device, dtype=torch.float32 if on_cpu else torch.bfloat16)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for the product
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _num_weights(parameter: torch.nn.Parameter) -> int:
    # A 4-bit parameter holds two weights per byte; its quantization state has the true shape.
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return math.prod(shape) if shape is not None else parameter.numel()


def _num_tokens(batch: Any) -> int:
    branches = batch.get("branch_ids") if isinstance(batch, dict) else None
    return int((branches >= 0).sum()) if isinstance(branches, torch.Tensor) else 0
