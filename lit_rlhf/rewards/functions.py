"""Rewards that are Python functions."""

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from tenacity import Retrying, stop_after_attempt, wait_random_exponential
from torch import nn

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.options import check_choice, check_option, is_whole
from lit_rlhf.rewards.base import OnFailure, Reward, as_scores
from lit_rlhf.types import Completions, Scores


class FunctionReward(Reward):
    """A Python function `f(prompts, responses, **columns)` that returns one number per response.

    It is called with keyword arguments: the prompts (special tokens included) and responses (without) as lists of
    strings, and those columns of the data set that it has parameters for, or all where it takes `**kwargs`.

    One with a parameter `completions` is called as TRL calls its reward functions, so that those work as they are: the
    prompts are given as the data set has them, and where these are messages, so are the completions, `[{"role":
    "assistant", "content": ...}]` each; `completion_ids` are lists of token ids. Words of the assistant that a prompt
    ends in are put before the completion's. An `async def` is run to its end. None for a response says that the
    function doesn't apply to it, and counts 0, in a `WeightedSum` nothing.

    Args:
        function: The function, or where it is: "package.module.function", or "path/to/file.py:function".
        name: What it is called in errors; default: its own name.
        retries: How often it is called again where it raises an error, after waits that grow from about 1 to 60
            seconds: for functions that ask a server. 0 or more.
        on_failure: What becomes of responses for which it returns nan, saying that it couldn't score them: "raise" ends
            the run; "mean" takes the mean of their prompt's others; "skip" leaves them out, counted as `reward/failed`.
            An error that it raises, and nan for all, end the run.

    Raises:
        ConfigurationError: There is no such function, or it can't be called so.

    Example:
        >>> reward = FunctionReward(lambda responses, **_: [float(len(text)) for text in responses])
        >>> reward.name
        '<lambda>'
    """

    def __init__(
        self,
        function: str | Callable[..., Sequence[float | None]],
        name: str | None = None,
        retries: int = 0,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        self.function = load_function(function) if isinstance(function, str) else function
        own = getattr(function, "__qualname__", type(function).__name__)
        given = function if isinstance(function, str) else own
        self.name = name or given.rpartition(">.")[2] or given
        check_option(callable(self.function), self, "function", function, "a function")
        # Of a module, what it computes tells its arguments: its `__call__` takes any.
        called: Callable[..., Any] = self.function
        if isinstance(called, nn.Module):
            called = called.forward
        try:
            self.wants = list(inspect.signature(called).parameters.values())
        except (TypeError, ValueError):  # builtins that don't tell
            keyword = inspect.Parameter.KEYWORD_ONLY
            self.wants = [inspect.Parameter(n, keyword) for n in ("prompts", "responses")]
        self.retries = retries
        check_option(is_whole(retries, 0), self, "retries", retries, "0 or more")
        self.on_failure = on_failure
        check_choice(self, "on_failure", on_failure, *get_args(OnFailure))

    def score(self, completions: Completions) -> Scores:
        """(N,) float32.

        Raises:
            ConfigurationError: It wants a column that isn't there.
            DataError: It returned another number of values, or one that isn't a finite number.
        """
        arguments = self._arguments(completions)
        try:
            values = self._call(arguments)
        except Exception as error:
            error.add_note(f"Raised by the reward function {self.name!r}.")
            raise
        numbers = self._checked(values, completions)
        return as_scores(numbers, completions, skip=self.on_failure == "skip")

    def _call(self, arguments: dict[str, Any]) -> Any:
        def call() -> Any:
            found = self.function(**arguments)
            if not inspect.iscoroutine(found):
                return found
            with ThreadPoolExecutor(1) as pool:  # in this thread a loop may run, as in notebooks
                return pool.submit(asyncio.run, found).result()

        stop, wait = stop_after_attempt(self.retries + 1), wait_random_exponential(1, 60)
        return Retrying(stop=stop, wait=wait, reraise=True)(call)

    def _arguments(self, completions: Completions) -> dict[str, Any]:
        given: dict[str, Any] = {"prompts": completions.prompts, "responses": completions.responses}
        if any(p.name == "completions" for p in self.wants):
            given |= _trl_arguments(completions)
        known: dict[str, Any] = {**completions.columns, **given}
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.wants)
        wanted = [p for p in self.wants if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        missing = [p.name for p in wanted if p.default is p.empty and p.name not in known]
        if missing:
            raise ConfigurationError(
                f"The reward function {self.name!r} wants {missing}, but there are only prompts, responses and the "
                f"columns {sorted(completions.columns)}. Rename its parameters, give them defaults, or let the data "
                "module carry these columns (format.columns)."
            )
        return known if takes_all else {p.name: known[p.name] for p in wanted if p.name in known}

    def _checked(self, values: object, completions: Completions) -> list[float | None]:
        count = len(completions.responses)
        listed: Any = values.tolist() if hasattr(values, "tolist") else values
        is_list = isinstance(listed, Sequence) and not isinstance(listed, str)
        if not is_list or len(listed) != count:
            what = f"{len(listed)} values" if is_list else repr(listed)[:200]
            raise DataError(
                f"The reward function {self.name!r} returned {what} ({type(values).__name__}) for {count} responses. "
                "It must return a list of one number per response, in their order."
            )
        numbers = [0.0 if value is None else _number(value) for value in listed]
        missing = self.on_failure != "raise"
        for i, number in enumerate(numbers):
            if not math.isfinite(number) and not (missing and listed[i] != listed[i]):
                raise DataError(
                    f"The reward function {self.name!r} returned {listed[i]!r} for response {i}, "
                    f"{completions.responses[i]!r}, to the prompt {completions.prompts[i]!r}. A reward must be a "
                    "finite number: clip or replace it there."
                )
        return [None if math.isnan(number) else number for number in numbers]


def load_function(where: str) -> Callable[..., Any]:
    """Find a function by "package.module.function" or "path/to/file.py:function".

    Raises:
        ConfigurationError: There is no such file, module or function; the cause is named.
    """
    place, separator, name = where.rpartition(":")
    if not separator:
        place, _, name = where.rpartition(".")
    try:
        load = _from_file if place.endswith(".py") else importlib.import_module
        found: object = getattr(load(place), name)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"There is no function {where!r}: {error}. Give 'package.module.function' (the package must be installed "
            "or on PYTHONPATH) or 'path/to/file.py:function'."
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{where!r} is a {type(found).__name__}, not a function.")
    return found


def _trl_arguments(completions: Completions) -> dict[str, Any]:
    prompts: list[Any] = []
    answers: list[Any] = []
    given = completions.prompts if completions.given is None else completions.given
    for prompt, response in zip(given, completions.responses, strict=True):
        if isinstance(prompt, str):
            prompts.append(prompt)
            answers.append(response)
            continue
        turns = [dict(turn) for turn in prompt]
        begun = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
        prompts.append(turns)
        answers.append([{"role": "assistant", "content": begun + response}])
    rows = zip(completions.tokens, completions.response_mask.bool(), strict=True)
    ids = [tokens[mask].tolist() for tokens, mask in rows]
    return {"prompts": prompts, "completions": answers, "completion_ids": ids}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _from_file(place: str) -> Any:
    path = Path(place)
    if not path.is_file():
        raise ConfigurationError(
            f"There is no file {str(path)!r} (looked in {Path.cwd()}) to take a reward function from."
        )
    # By its whole path, so that it hides no module; dataclasses and pickles look it up there.
    name = str(path.resolve())
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{str(path)!r} is no Python file to take a reward function from.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
