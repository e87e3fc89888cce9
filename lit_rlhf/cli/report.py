"""`lit-rlhf report`: what became of a run, as one HTML file; or several runs beside each other."""

from pathlib import Path

from lit_rlhf.cli.commands import WRITES
from lit_rlhf.cli.functions import Special
from lit_rlhf.cli.output import print_text, refuse_output
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.report.rounds_page import ROUNDS, report_rounds
from lit_rlhf.report.run_page import report_runs

SPECIAL: Special = {"runs": {"nargs": "+", "type": Path}}


def report(runs: list[Path], output: Path | None = None) -> None:
    """Curves, events, samples, time, configuration and command of runs, as one HTML file that fetches nothing.

    Several runs are compared: their curves lie over each other, options that differ are marked, and runs that differ
    by seed alone become one with its spread. A directory of `lit-rlhf iterate` gives the report of its rounds.

    Args:
        runs: Directories of runs; or one of rounds.
        output: The file; its numbers lie as JSON beside it. Default: report.html in the run's directory; of several
            runs, in the current one.
    """
    # A file is refused below.
    default = runs[0] if len(runs) == 1 and not runs[0].is_file() else Path()
    output = output or default / "report.html"
    refuse_output(output, "--output", WRITES["report"]["output"])
    rounds = [run for run in runs if (run / ROUNDS).is_file()]
    if rounds and len(runs) > 1:
        raise ConfigurationError(
            f"{rounds[0]} holds rounds, which have a report of their own: name it alone, or name runs within it, such "
            f"as {rounds[0] / 'round-00' / 'policy'}."
        )
    path = report_rounds(runs[0], output) if rounds else report_runs(runs, output)
    print_text(f"{path}\n")
