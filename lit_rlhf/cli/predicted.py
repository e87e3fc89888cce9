"""What `lit-rlhf predict` found, as a file: Lightning gives it to Python alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_rlhf.callbacks.records import plain_json
from lit_rlhf.cli.output import print_text, write_rows
from lit_rlhf.data import BranchedDataModule
from lit_rlhf.distributed import gather_objects
from lit_rlhf.internals.lightning import is_dry_run

PREDICTIONS = "predictions.jsonl"
"""Name of the file in the directory of `--run_dir`."""


class WritePredictions(Callback):
    """Writes what `predict_step` gives for each row of the test data, in their order, an object a line.

    `row` counts the rows of the source from 0, those that can't be used included; the rest is what the step names. A
    step of your own gives a list with an object for each row of the batch, or a dict of tensors whose first axis they
    are.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's rows."""
        indices = batch["index"].tolist() if isinstance(batch, Mapping) and "index" in batch else []
        found = _by_row(outputs, batch, len(indices))
        self._rows += [{"row": i} | row for i, row in zip(indices, found, strict=False)]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of all processes."""
        rows = [row for part in gather_objects(self._rows) for row in part]
        self._rows = []
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        if not rows:
            print_text(
                f"No {PREDICTIONS}: what predict_step of {type(pl_module).__name__} gives is no object for each row.\n"
            )
            return
        rows.sort(key=lambda row: int(row["row"]))
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, BranchedDataModule):
            rows = [row | {"row": int(data.rows["test"][row["row"]]["row"])} for row in rows]
        path = Path(trainer.default_root_dir) / PREDICTIONS
        write_rows(map(plain_json, rows), path)
        print_text(f"{path}\n")


def _by_row(outputs: Any, batch: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """An object for each row of a batch; none of outputs that have no rows."""
    if isinstance(outputs, list) and all(isinstance(each, Mapping) for each in outputs):
        yield from (dict(each) for each in outputs)
    elif isinstance(outputs, Mapping):
        there = batch.get("step_mask", batch.get("branch_mask"))  # of lists that are padded
        tensors = {n: v for n, v in outputs.items() if isinstance(v, Tensor) and n != "index"}
        columns = {n: v for n, v in tensors.items() if v.shape[:1] == (number,)}
        for i in range(number if columns else 0):
            yield {
                name: values[i][there[i]].tolist() if _fits(values, there) else values[i].tolist()
                for name, values in columns.items()
            }


def _fits(values: Tensor, mask: Tensor | None) -> bool:
    return mask is not None and values.shape == mask.shape
