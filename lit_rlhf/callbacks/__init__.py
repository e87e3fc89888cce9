"""Lightning callbacks: exact checkpoints, samples, metrics, timing, progress, preemption, export."""

from lit_rlhf.callbacks.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.callbacks.export import ExportModel
from lit_rlhf.callbacks.guards import CollapseGuard, PolicyCollapsedError
from lit_rlhf.callbacks.iteration_checkpoint import IterationCheckpoint
from lit_rlhf.callbacks.metrics_file import MetricsFile
from lit_rlhf.callbacks.moving_reference import MovingReference
from lit_rlhf.callbacks.preemption import Preemption
from lit_rlhf.callbacks.progress import PhaseProgressBar
from lit_rlhf.callbacks.samples import SampleTable
from lit_rlhf.callbacks.timing import PhaseTimer

__all__ = [
    "AtomicCheckpointIO",
    "CollapseGuard",
    "ExportModel",
    "IterationCheckpoint",
    "MetricsFile",
    "MovingReference",
    "PhaseProgressBar",
    "PhaseTimer",
    "PolicyCollapsedError",
    "Preemption",
    "SampleTable",
]
