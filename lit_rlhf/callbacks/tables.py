"""Tables for the loggers that can show them; none of their packages is imported unless its logger is in use."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

Row = Sequence[Any]


def log_table(
    logger: Logger, name: str, columns: Sequence[str], rows: Sequence[Row], step: int
) -> None:
    """Show a table where the logger has a place for one; others are passed over.

    Args:
        logger: Any of the trainer's loggers.
        name: Name of the table, such as `train/samples`.
        columns: Heads of the columns.
        rows: Cells of each row.
        step: Iterations done.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, markdown_table(columns, rows), step)
    elif isinstance(logger, WandbLogger):
        logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)
    elif isinstance(logger, MLFlowLogger):
        data = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
        logger.experiment.log_table(logger.run_id, data, f"{name}/{step:08d}.json")


def markdown_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    r"""A table in Markdown; line breaks and bars in cells are made harmless.

    Example:
        >>> print(markdown_table(["text", "score"], [["a|b\nc", 0.51234]]))
        | text | score |
        | --- | --- |
        | a\|b<br>c | 0.5123 |
    """
    lines = [columns, ["---"] * len(columns), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
