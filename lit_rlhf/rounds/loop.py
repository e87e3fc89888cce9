"""Running the rounds: what is done is not done again."""

import json
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.data import FileSource
from lit_rlhf.data.sources import local_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.files import DirectoryLock, unfinished_file, write_text
from lit_rlhf.options import check_option, is_text, is_whole
from lit_rlhf.report.rounds_page import ROUNDS, report_rounds
from lit_rlhf.report.run_page import report_runs
from lit_rlhf.rounds.commands import RoundError, Runner, Subprocesses
from lit_rlhf.rounds.evaluation import (
    Evaluation,
    Measures,
    Stop,
    measure,
    refuse_other_measures,
    said_in,
)
from lit_rlhf.rounds.methods import Method
from lit_rlhf.rounds.steps import Round, Step
from lit_rlhf.rounds.training import contents, refuse_changes, require_export
from lit_rlhf.tokenizers import require_directory

_AGAIN = "Start the same command again to go on: what is finished isn't done again."


class Rounds:
    """Rounds of collecting, judging and training, each in a directory `round-00`, `round-01`, ... of `run_dir`.

    A round holds its data, each step's options (`sample.yaml`, ...), the directory of its training with a report, and
    what was measured. A step whose result is there is not run again; a training goes on from its last checkpoint. So
    after a kill the same call goes on, and ends with the same files as one that wasn't interrupted. `rounds.json` tells
    commands, times, measures, and how it ended; `report.html` shows them.

    Args:
        policy: The first policy: directory or hub id of a model, or an exported adapter.
        method: What a round does.
        run_dir: Directory of the rounds.
        rounds: How many, at least 1; more may be asked for later.
        evaluation: What is measured of the first policy and after each round.
        stop: When to end early.
        seed: Of samples and trainings.
        runner: How commands are run; default: each in a process of its own.

    Raises:
        ConfigurationError: An option is out of range, or `stop` looks at what isn't measured.

    Example:
        reward = {"class_path": "LengthReward", "init_args": {"target": 20}}
        method = RejectionSampling("prompts.jsonl", reward, num_samples=8)
        Rounds("HuggingFaceTB/SmolLM2-135M-Instruct", method, "runs/raft").run()
    """

    def __init__(
        self,
        policy: str,
        method: Method,
        run_dir: str | Path,
        rounds: int = 3,
        evaluation: Evaluation | None = None,
        stop: Stop | None = None,
        seed: int = 0,
        runner: Runner | None = None,
    ) -> None:
        check_option(is_text(policy), self, "policy", policy, "a model")
        check_option(is_whole(rounds, 1), self, "rounds", rounds, "1 or more")
        check_option(is_whole(seed, 0), self, "seed", seed, "0 or more")
        self.policy, self.method, self.root = policy, method, Path(run_dir).expanduser()
        self.rounds, self.seed = rounds, seed
        self.evaluation, self.stop = evaluation, stop or Stop()
        self.stop.check(evaluation)
        self.runner = runner or Subprocesses()
        self.record: dict[str, Any] = {}
        self._parsed: set[str] = set()

    def run(self) -> Path:
        """Run what isn't done yet.

        Returns:
            The last policy, or where people are waited for, the one before.

        Raises:
            ConfigurationError: The directory holds other rounds, or an option of a step is wrong.
            RoundError: A step failed.
            FileError: Another process runs these rounds, or a file can't be written.
        """
        lock = DirectoryLock(self.root)
        lock.take()
        try:
            self._begin()
            return self._rounds()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            self._end("interrupted" if stopped else "failed", said)
            if stopped:
                _say(f"Interrupted. {_AGAIN}")
            raise
        finally:
            lock.release()

    def _rounds(self) -> Path:
        policy, first = self.policy, self.root / "initial"
        zeroth = Round(0, self.root, policy, policy, self.seed)
        for directory, steps in ((first, self._first()), (zeroth.directory, self._planned(zeroth))):
            self._prepare(directory, steps)  # what is wrong is said before any work starts
        self._do("initial", first, self._first())
        measured = [self._measured("initial", first)]
        for number in range(self.rounds):
            planned = Round(number, self.root, self.policy, policy, self.seed)
            if (ask := self._do(number, planned.directory, self._planned(planned))) is not None:
                self._end("waiting", ask)
                _say(f"Round {number} waits for people:\n{ask}\n{_AGAIN}")
                return Path(policy)
            policy = str(planned.result)
            measured.append(self._measured(number, planned.directory))
            self._report(planned)
            told = ", ".join(f"{name} {value:.4g}" for name, value in measured[-1].items())
            _say(f"Round {number} is done: {told or 'nothing measured'}. Its policy: {policy}")
            if (reason := self.stop.reason(measured)) is not None:
                self._end("stopped", f"after round {number}: {reason}")
                _say(f"Stopped after round {number}: {reason}.")
                return Path(policy)
        self._end("finished", None)
        return Path(policy)

    def _refuse_other_measures(self) -> None:
        every = [
            Round(number, self.root, self.policy, "", self.seed) for number in range(self.rounds)
        ]
        measuring = [
            *self._first(),
            *(step for one in every for step in self._measuring(one.directory, str(one.result))),
        ]
        for step in measuring:
            refuse_other_measures(step, step.result.with_name(f"{step.name}.yaml"))

    def _first(self) -> list[Step]:
        return list(self._measuring(self.root / "initial", self.policy))

    def _planned(self, planned: Round) -> list[Step]:
        measuring = self._measuring(planned.directory, str(planned.result))
        return [*self.method.steps(planned), *measuring]

    def _measuring(self, directory: Path, policy: str) -> Iterable[Step]:
        if self.evaluation is None:
            return ()
        return self.evaluation.steps(directory, policy, self.policy, self.seed)

    def _measured(self, key: int | str, directory: Path) -> Measures:
        found = measure(directory)
        self._of(key)["measures"] = found
        return found

    # -- steps --------------------------------------------------------------------------------------------------------

    def _do(self, key: int | str, directory: Path, steps: list[Step]) -> str | None:
        """Run the steps that aren't done; what people are asked to do, where one waits for them."""
        commands, told = self._prepare(directory, steps), self._of(key)
        for step in (step for step in steps if step.done):
            # It may have been killed behind its result.
            unfinished_file(step.result).unlink(missing_ok=True)
        for step in (step for step in steps if not step.done):
            if not step.words:
                return step.ask
            words = commands[step.name]
            _say(f"{_name(key)}, {step.name}: {shlex.join(['lit-rlhf', *words])}")
            began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
            line: dict[str, Any] = {"name": step.name, "command": shlex.join(["lit-rlhf", *words])}
            line |= {"began": began, "seconds": 0.0}
            # One without an end was killed: its result may be there nevertheless, and then its line stays.
            known = [one for one in told["steps"] if one["name"] != step.name or one["seconds"]]
            told["steps"] = [*known, line]
            self._write()
            try:
                self.runner.run(words)
            except RoundError as error:
                raise RoundError(
                    f"{_name(key)}, {step.name}: {error}. Mend what it says above. {_AGAIN}"
                ) from error
            if not step.done:
                raise RoundError(
                    f"{_name(key)}, {step.name}: `{' '.join(words)}` left no {step.result}. {_AGAIN}"
                )
            if step.result.is_file() and step.result.stat().st_size == 0:
                step.result.unlink()
                raise RoundError(
                    f"{_name(key)}, {step.name}: `{' '.join(words)}` made no row, and says above why. Give it a higher "
                    f"length limit (sampling.max_new_tokens), more samples of a prompt, or other prompts. {_AGAIN}"
                )
            line["seconds"] = time.monotonic() - start
            self._write()
        return None

    def _prepare(self, directory: Path, steps: Iterable[Step]) -> dict[str, list[str]]:
        """The commands of the steps that aren't done, with their options written."""
        left = [step for step in steps if step.words and not step.done]
        for step in left:
            _require_inputs(step)
        return {step.name: self._command(step, directory / f"{step.name}.yaml") for step in left}

    def _command(self, step: Step, file: Path) -> list[str]:
        """Write the options of a step, and have its command read all of them once."""
        text = "".join(f"# {line}\n" for line in contents(step.configs))
        text += "" if step.run_dir else said_in(step.reads)
        text += yaml.safe_dump(dict(step.options), sort_keys=False, allow_unicode=True)
        begun = step.run_dir is not None and any((step.run_dir / "checkpoints").glob("*.ckpt"))
        if begun and file.is_file():
            refuse_changes(step, file, text)
        write_text(file, text, "The options")
        configs = [word for config in step.configs for word in ("-c", config)]
        words = [*step.words, *configs, "-c", str(file)]
        if step.name not in self._parsed:  # other rounds differ in places alone
            try:
                config = self.runner.parse(words)
            except RoundError as error:
                raise RoundError(f"{step.name}: {error}, see above. Nothing was begun.") from error
            if step.run_dir is not None:
                require_export(step, config)
            self._parsed.add(step.name)
        return [*words, "--ckpt_path", "last"] if begun else words

    # -- the record ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        path = self.root / ROUNDS
        what = {"method": type(self.method).__name__, "policy": self.policy}
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if before and any(before[name] != value for name, value in what.items()):
            raise ConfigurationError(
                f"{self.root} holds rounds of {before['method']} from {before['policy']}, not of {what['method']} from "
                f"{what['policy']}. Give this one a run_dir of its own."
            )
        self._refuse_other_measures()
        self.record = {**what, "state": "running", "reason": None}
        self.record["rounds"] = before.get("rounds", {})
        self._write()

    def _of(self, key: int | str) -> dict[str, Any]:
        """The record's part of a round."""
        found: dict[str, Any] = self.record["rounds"].setdefault(
            str(key), {"steps": [], "measures": {}}
        )
        return found

    def _end(self, state: str, reason: str | None) -> None:
        if self.record:
            self.record |= {"state": state, "reason": reason}
            self._write()
            report_rounds(self.root, self.root / "report.html")

    def _write(self) -> None:
        write_text(
            self.root / ROUNDS,
            json.dumps(self.record, indent=2, ensure_ascii=False) + "\n",
            "The record",
        )

    def _report(self, planned: Round) -> None:
        self._write()
        for run in (planned.directory / name for name in ("reward", "policy")):
            if (run / "metrics.jsonl").is_file():
                report_runs([run], run / "report.html")
        report_rounds(self.root, self.root / "report.html")


def _require_inputs(step: Step) -> None:
    """Refuse files of rows that aren't there, and a reward model that isn't.

    Raises:
        DataError: Names the file.
        ConfigurationError: Names the model's directory.
    """
    for path in step.reads:
        source = local_source(path)
        if isinstance(source, FileSource) and "://" not in path:
            source.files()
    reward = step.options.get("reward")
    options = reward.get("init_args") if isinstance(reward, Mapping) else None
    model: Any = options.get("path") if isinstance(options, Mapping) else None
    if isinstance(model, str) and not model.endswith(".ckpt"):
        require_directory(model, "reward model")


def _name(key: int | str) -> str:
    return f"round {key}" if isinstance(key, int) else "the first policy"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
