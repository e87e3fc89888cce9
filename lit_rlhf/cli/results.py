"""What `lit-rlhf predict`, `validate` and `test` leave in the run's directory: rows, numbers, a reward model's page.

Lightning gives them to Python, or to a logger, alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lit_rlhf.callbacks.records import JsonLines, plain_json
from lit_rlhf.cli.output import print_text, write_rows
from lit_rlhf.data import BranchedDataModule, Mixture
from lit_rlhf.data.conversion import SUBSET
from lit_rlhf.distributed import gather_objects
from lit_rlhf.internals.lightning import is_dry_run
from lit_rlhf.modules import RewardModelModule
from lit_rlhf.objectives import HeadEnsemble

PREDICTIONS = "predictions.jsonl"
"""Name of the file in the directory of `--run_dir`."""

EVALUATIONS = "evaluations.jsonl"
"""Name of the file there."""


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


def keep_evaluation(trainer: Trainer, command: str) -> None:
    """Add a line to `evaluations.jsonl` in the run's directory: `stage`, `command`, `ckpt_path`, and all numbers.

    Args:
        trainer: Which validated or tested.
        command: What did.
    """
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not numbers or not trainer.is_global_zero or is_dry_run(trainer):
        return
    path = Path(trainer.default_root_dir) / EVALUATIONS
    about = {"stage": trainer.state.fn, "command": command, "ckpt_path": trainer.ckpt_path}
    JsonLines(path).append([about | numbers])
    print_text(f"{path}\n")


def report_validated(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, command: str
) -> None:
    """Write `reward.html` into the run's directory, where a reward model was validated on rows that name subsets.

    Rows are read anew, whole: the data's limits of length don't hold here. What can't be reported so is said, and so is
    what fails: the validation has been done by then, and stands.

    Args:
        trainer: Which validated.
        module: The reward model.
        data: Its pairs or rankings.
        command: For the page.
    """
    if not isinstance(module, RewardModelModule) or not isinstance(data, BranchedDataModule):
        return
    rows, objective = data.rows["val"], module.objective
    if SUBSET not in rows.columns or data.shape.completions[0] < 2 or objective.by_step:
        return
    name = "train" if data.sources["val"] is None else "val"
    source = data.sources[name]
    own = type(data).records is not BranchedDataModule.records
    limit = trainer.limit_val_batches
    part = isinstance(limit, int) or limit != 1.0 or trainer.world_size > 1  # 1 is one batch
    if source is None or own or isinstance(source, Mixture) or part:
        if trainer.is_global_zero:
            print_text(
                "No page by subset: it is of one process, of all batches, and of one source that is read by a format. "
                "Give `lit-rlhf evaluate-reward` the checkpoint.\n"
            )
        return
    from lit_rlhf.evaluation import (  # noqa: PLC0415  (start-up that training shall not pay)
        ModelScorer,
        evaluate_reward,
        read_comparisons,
    )
    from lit_rlhf.report.reward_page import report_reward  # noqa: PLC0415  (see above)

    try:
        comparisons = read_comparisons(source, data.format_of(name))
        held_out = {rows[place]["row"] for place in range(len(rows))}
        comparisons = replace(
            comparisons, items=[i for i in comparisons.items if i.row in held_out]
        )
        alike = len(objective.heads) == 1 or isinstance(objective, HeadEnsemble)
        scorer = ModelScorer(
            module.backbone.to(trainer.strategy.root_device),
            "the model",
            learned=data.prompt_form("val"),
            heads=objective.heads,
            reward=None if alike else objective.reward,
        )
        found = evaluate_reward(scorer, comparisons)
        page = Path(trainer.default_root_dir) / "reward.html"
        print_text(f"{report_reward([found], page, command=command)}\n")
    except Exception as error:  # noqa: BLE001 - memory and disk too; whatever it is, the numbers above are right
        print_text(f"No page by subset: {' '.join(str(error).split()) or type(error).__name__}\n")
