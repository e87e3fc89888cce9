"""`lit-rlhf score`: a reward model as a command."""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from lit_rlhf.cli.functions import REQUEST, Special
from lit_rlhf.cli.output import (
    refuse_input,
    require_columns,
    say_written,
    set_aside,
    writable_rows,
    write_rows,
)
from lit_rlhf.cli.unfinished import as_learned, batches_left, unfinished_of
from lit_rlhf.data import Demonstration, DemonstrationDataModule, RowsSource
from lit_rlhf.data.preparation import InvalidPolicy
from lit_rlhf.data.sources import local_source
from lit_rlhf.evaluation.scorers import Layout
from lit_rlhf.models import Backbone, evaluating
from lit_rlhf.models.fingerprint import weights_fingerprint
from lit_rlhf.models.precision import default_device
from lit_rlhf.models.specs import DTypeOption
from lit_rlhf.prompt_form import warn_of_prompts
from lit_rlhf.rewards.trained import TrainedReward

SPECIAL: Special = {"request": REQUEST}


def score(
    model: str,
    data: str,
    output: Path | None = None,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    layout: Layout = "auto",
    batch_size: int = 16,
    invalid: InvalidPolicy = "error",
    dtype: DTypeOption = "float32",
    request: str = "",
) -> None:
    """Score completions with a reward model, on a GPU where there is one.

    Killed while it writes to a file, the same command goes on behind the last batch.

    Args:
        model: An export, a checkpoint (.ckpt) of RewardModelModule, or a sequence classifier with one label.
        data: JSONL, JSON, CSV or Parquet with a prompt and a completion in each row, or a directory that `save_to_disk`
            of the datasets library wrote.
        output: JSONL to write, the rows with a column `score`, null for an empty completion, what is longer than the
            model reads and what `invalid` leaves out; default: standard output. A `score` that they hold already goes
            on as `score_before`.
        prompt_column: Column of the prompt.
        completion_column: Column of the completion.
        layout: Prompts of plain text as chats, or as they stand. auto: as the model has learned them, and as they stand
            where it doesn't say.
        batch_size: Rows that are scored together.
        invalid: Rows that can't be used end it, or are counted and get no score.
        dtype: Of the model's weights; float32 keeps small differences of scores.
        request: No option: all of them as text, by which a killed call is known again. Empty: nothing is kept for one.
    """
    source = local_source(data)
    refuse_input(output, source)
    every = writable_rows(source)
    named = {"--prompt_column": prompt_column, "--completion_column": completion_column}
    require_columns(source, every, named)
    backbone = TrainedReward.read(model, None).load({"dtype": dtype})
    backbone.to(default_device())
    answered = [i for i, row in enumerate(every) if str(row.get(completion_column, "?")).strip()]
    asked = [row.get(prompt_column) for row in every]
    plain = Demonstration(prompt_column, completion_column)
    format = as_learned(plain, layout, backbone, asked)
    unfinished = unfinished_of(
        output, request, every, partial(weights_fingerprint, backbone, "reward")
    )
    options = {
        "tokenizer": backbone.tokenizer,
        "format": format,
        "batch_size": batch_size,
        "invalid": invalid,
    }
    if answered:
        usable, fitting = _that_fit(_opened(every, answered, options), answered, backbone)
        if len(fitting) < usable:
            sys.stderr.write(
                f"{usable - len(fitting)} of {len(every)} rows are longer than the {backbone.context_length} "
                "tokens that the model reads: they get no score (null).\n"
            )
        answered = fitting
    if answered:
        rows = _opened(every, answered, options)
        warn_of_prompts(f"The reward model {model!r}", backbone.prompts, rows.prompt_form("test"))
        for batch in batches_left(rows.test_dataloader(), unfinished, "scoring"):
            on_device = move_data_to_device(batch, backbone.device)
            with torch.no_grad(), evaluating(backbone):
                found = backbone(on_device, num_branches=1, role="reward", scores="reward").scores
            unfinished.add(dict(zip(batch["index"].tolist(), found.tolist(), strict=True)))
    scores = {answered[i]: score for i, score in unfinished.known.items()}
    kept = set_aside(every, ["score"])
    write_rows(({**row, "score": scores.get(i)} for i, row in enumerate(kept)), output)
    unfinished.forget()
    say_written(len(kept), output)


def _opened(
    every: Sequence[dict[str, Any]], answered: Sequence[int], options: Mapping[str, Any]
) -> DemonstrationDataModule:
    """The rows that have an answer, tokenized."""
    answers = RowsSource([every[i] for i in answered])
    rows = DemonstrationDataModule(test=answers, too_long="error", max_invalid=1.0, **options)
    rows.prepare_data()
    rows.setup("test")
    return rows


def _that_fit(
    rows: DemonstrationDataModule, answered: Sequence[int], backbone: Backbone
) -> tuple[int, list[int]]:
    """Of the rows that have an answer, how many can be used, and those of them that the model reads whole."""
    context = backbone.context_length or math.inf
    used = rows.rows["test"]
    lengths = enumerate(used.lengths.tolist())
    fitting = [answered[used[place]["row"]] for place, length in lengths if length <= context]
    return len(used), fitting
