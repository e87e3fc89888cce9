"""Lightning callbacks: exact checkpoints, samples, metrics, timing, progress, preemption, export."""

from lit_rlhf.callbacks.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from lit_rlhf.callbacks.export import ExportModel as ExportModel
from lit_rlhf.callbacks.guards import (
    CollapseGuard as CollapseGuard,
    PolicyCollapsedError as PolicyCollapsedError,
)
from lit_rlhf.callbacks.iteration_checkpoint import IterationCheckpoint as IterationCheckpoint
from lit_rlhf.callbacks.metrics_file import MetricsFile as MetricsFile
from lit_rlhf.callbacks.moving_reference import MovingReference as MovingReference
from lit_rlhf.callbacks.preemption import Preemption as Preemption
from lit_rlhf.callbacks.progress import PhaseProgressBar as PhaseProgressBar
from lit_rlhf.callbacks.run_record import RunRecord as RunRecord
from lit_rlhf.callbacks.samples import SampleTable as SampleTable
from lit_rlhf.callbacks.stop_after import StopAfter as StopAfter
from lit_rlhf.callbacks.summary import RunSummary as RunSummary
from lit_rlhf.callbacks.timing import PhaseTimer as PhaseTimer
from lit_rlhf.callbacks.watchdog import Watchdog as Watchdog
