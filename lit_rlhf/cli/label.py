"""`lit-rlhf label`: preference data from a judge."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from lit_rlhf.cli.functions import Special
from lit_rlhf.cli.output import print_text, progress, refuse_input
from lit_rlhf.data import Format, Source
from lit_rlhf.data.sources import given_source
from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.feedback import label_pairs, read_labelled_pairs, write_preferences
from lit_rlhf.files import write_text
from lit_rlhf.judges import Judge, LocalJudge, PairwiseJudge
from lit_rlhf.models.precision import default_device

SPECIAL: Special = {"data": {"nargs": "?", "type": str | None}}


def label(
    judge: Judge,
    output: Path,
    data: str | None = None,
    source: Source | None = None,
    format: Format | None = None,
    skip_invalid: bool = False,
    summary: Path | None = None,
) -> None:
    """Let a model say which of two answers is better, and write preference data with soft labels.

    `lit-rlhf label pairs.jsonl --judge EndpointJudge --judge.endpoint.url http://127.0.0.1:8000/v1 --judge.model M
    --output preferences.jsonl` asks about each pair in both orders. What was answered is kept in `FILE.answers` (or the
    judge's own `cache`): the same command goes on after a kill and asks nothing twice. See docs/howto/judges.md.

    Args:
        judge: EndpointJudge or LocalJudge, with a pairwise template.
        output: JSONL to write, whole or not at all: prompt, chosen, rejected, p_chosen.
        data: JSONL, JSON, CSV or Parquet with pairs, rankings, or a list of answers (`completions`) per row, or a
            directory of the `datasets` library.
        source: Rows from elsewhere, instead of a file: HubSource and its kin.
        format: How a row becomes answers. Default: the format that reads the first rows.
        skip_invalid: Leave out rows that can't be used, and say how many, rather than stop.
        summary: JSON to write beside it: how many pairs were labelled and tied, agreement, position bias, and what was
            asked.
    """
    source = given_source(data, source, "Give either a file to label or --source.")
    pairwise = PairwiseJudge(judge)
    if isinstance(judge, LocalJudge) and judge.spec is None:
        raise ConfigurationError("LocalJudge needs a model here: --judge.backbone.name DIRECTORY.")
    refuse_input(output, source)
    judge.to(default_device())
    if judge.cache is None:
        judge.cache = output.with_name(f"{output.name}.answers")
    kept = f"What was answered is kept in {judge.cache}: the same command goes on from there"
    pairs, dropped = read_labelled_pairs(source, format, "drop" if skip_invalid else "error")
    with progress("judging", len(pairs)) as tell:
        try:
            done = label_pairs(pairs, pairwise, tell)
        except ServiceError as error:
            raise ServiceError(
                f"{error} {kept}, with --judge.failures null without what fails."
            ) from error
        except KeyboardInterrupt:
            sys.stderr.write(f"{kept}.\n")
            raise
    if summary is not None:  # first: who finds the output finds both
        told = {**done.numbers(), "left_out": dropped, **asdict(judge.tally)}
        write_text(summary, json.dumps(told, indent=2) + "\n", "The summary")
    failed = f"the last failure: {judge.complaint}\n" if judge.complaint else ""
    if failed and not done.judged:
        raise ServiceError(f"No pair got a verdict, so {output} is not written; {failed.strip()}")
    write_preferences(done, output)
    left_out = f"{dropped} rows were left out as they can't be used\n" if dropped else ""
    print_text(f"{output}: {done}\n{left_out}{judge.tally}\n{failed}")
