"""`lit-rlhf iterate`: rounds of collecting, judging and training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from jsonargparse.typing import register_type

from lit_rlhf.cli.functions import call
from lit_rlhf.cli.main import main
from lit_rlhf.cli.output import print_text
from lit_rlhf.cli.shipped import with_found_configs
from lit_rlhf.rounds import Evaluation, Method, Rounds, Stop
from lit_rlhf.rounds.commands import InProcess, Subprocesses
from lit_rlhf.rounds.steps import FileOptions


def iterate(
    policy: str,
    method: Method,
    run_dir: Path,
    rounds: int = 3,
    evaluation: Evaluation | None = None,
    stop: Stop | None = None,
    seed: int = 0,
) -> None:
    """Sample, judge, train, and again: iterative DPO, self-rewarding, self-play, rejection sampling, reward refresh.

    `lit-rlhf iterate -c rounds/iterative_dpo` runs each round in a directory of its own. Started again, the same
    command goes on where it was: what is finished isn't done again. See docs/howto/iterate.md.

    Args:
        policy: The first policy: directory or hub id of a model, or an exported adapter.
        method: What a round does: IterativeDPO, SelfPlay, RejectionSampling or RewardRefresh.
        run_dir: Directory of the rounds.
        rounds: How many; more may be asked for later.
        evaluation: What is measured of the first policy and after each round.
        stop: When to end early.
        seed: Of samples and trainings.
    """
    runner = Subprocesses(InProcess(main))
    made = Rounds(policy, method, run_dir, rounds, evaluation, stop, seed, runner)
    last = made.run()
    reason = f" ({made.record['reason']})" if made.record["reason"] else ""
    print_text(
        f"{made.record['state']}{reason}\npolicy: {last}\nreport: {run_dir / 'report.html'}\n"
    )


def _options(given: object) -> FileOptions:
    try:
        found = yaml.safe_load(given) if isinstance(given, str) else given
    except yaml.YAMLError:
        found = given
    if not isinstance(found, Mapping):
        raise TypeError(
            f"{found!r} is no mapping of options. Give {{name: value, ...}} here, or the lines name: value below this "
            "option in the file of -c"
        )
    return FileOptions(found)


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    register_type(FileOptions, dict, _options)
    call(iterate, with_found_configs(words[1:]), "iterate")
