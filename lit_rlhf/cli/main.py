"""Dispatch of the command line. Heavy imports wait until a command is known, so that help answers at once."""

import atexit
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType

from lit_rlhf import __version__
from lit_rlhf.cli.commands import COMMANDS, RECIPES, TRAINING, usage
from lit_rlhf.cli.early import refuse_early, with_underscores
from lit_rlhf.cli.help import recipe_help, training_help
from lit_rlhf.errors import LitRLHFError, near
from lit_rlhf.files import REFUSALS

FUNCTIONS = "lit_rlhf.cli.functions"
_INTERRUPTED = 128 + signal.SIGINT
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_TURN = 5.0  # seconds


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: The command line without the program's name; default: that of this process.

    Raises:
        SystemExit: With status 2 after an error that the user can mend, whose message goes to standard error; 130 after
            Ctrl-C.
    """
    words = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, TextIOWrapper):
        # Text of data and models may hold what a terminal's encoding lacks, and half characters.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "help" and len(words) == 2 and words[1] in COMMANDS:
        words = [words[1], "--help"]
    if words[0] == "--version":
        print(f"lit-rlhf {__version__}")
        return
    if words[0] not in COMMANDS:
        print(
            f"lit-rlhf: there is no command {words[0]!r}.{near(words[0], COMMANDS)} lit-rlhf --help lists them.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    module, what = COMMANDS[words[0]]
    helps = {TRAINING: training_help, RECIPES: recipe_help}
    if module in helps and any(word in ("-h", "--help") for word in words[1:]):
        print(*helps[module](words[0], what), sep="\n", flush=True)
        return
    # `mine.MyModule` is found where the command is called; last, so that a file such as tty.py there hides nothing.
    here = str(Path.cwd())
    sys.path[:] = [*(place for place in sys.path if place not in ("", here)), here]
    _run(module, [words[0], *map(with_underscores, words[1:])])


def _run(module: str, words: Sequence[str]) -> None:
    """Run it, and say in a line what the user can mend."""
    try:
        _first_speaks(module, words)
    except LitRLHFError as error:
        if os.environ.get("LIT_RLHF_DEBUG"):
            traceback.print_exc()
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        print(f"\nlit-rlhf {words[0]}: {said}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print(f"\nlit-rlhf {words[0]}: interrupted.", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from error
    except OSError as error:  # what libraries write by themselves: a log, a cache
        if error.errno not in REFUSALS:
            raise
        print(f"\nlit-rlhf {words[0]}: {error}. Mend that, and start it again.", file=sys.stderr)
        raise SystemExit(2) from error


def _imported(module: str) -> ModuleType:
    """The module of a command, whose imports make a million objects that stay.

    To search them for garbage while they are made, later and at the end would take a third of a short command's time.
    """
    if module in sys.modules:
        return sys.modules[module]
    atexit.register(gc.freeze)
    collects = gc.isenabled()
    gc.disable()
    try:
        found = import_module(module)
    finally:
        if collects:
            gc.enable()
    gc.freeze()
    return found


def _first_speaks(module: str, words: Sequence[str]) -> None:
    """Run it. What one process of several fails by, all mostly do: the first says it, and the others are ended."""
    try:
        refuse_early(words)
        made = vars(_imported(module))
        if "run" in made:
            made["run"](words)
        else:
            function = made[words[0].replace("-", "_")]
            _imported(FUNCTIONS).call(function, words[1:], words[0], made.get("SPECIAL"))
    except Exception:
        if any(os.environ.get(name, "0") != "0" for name in _RANKS):
            time.sleep(_TURN)
        raise
