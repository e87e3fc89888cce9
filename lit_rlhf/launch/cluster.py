"""A training command on the workers of a Ray cluster.

Ray Train starts the workers, tells each what torchrun would, and starts all anew when one is lost. Each then runs the
same command as everywhere, with the strategy that its configuration names.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.cli import main as lit_rlhf
from lit_rlhf.cli.commands import COMMANDS, TRAINING
from lit_rlhf.distributed import gather_objects
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.extras import importing_extra
from lit_rlhf.options import is_whole


def launch(
    words: Sequence[str], workers: int, failures: int = 3, storage: Path = Path("runs/ray")
) -> None:
    """Run a training command on the workers of a Ray cluster: the one that RAY_ADDRESS names, one here, or a new one.

    Args:
        words: The command line of `lit-rlhf`. `fit` goes on after the newest checkpoint, if there is one.
        workers: How many; each takes a GPU where this machine has some. On each machine must be as many.
        failures: How often all workers may be started anew after one was lost.
        storage: Where Ray keeps its own notes of the run, which all workers must see.

    Raises:
        ConfigurationError: Ray isn't installed, or the command isn't one that can be launched.
        SystemExit: With status 2 where the command line is wrong, before a worker is started.
    """
    command = words[0] if words else ""
    if command not in COMMANDS or COMMANDS[command].module != TRAINING:
        names = ", ".join(name for name, each in COMMANDS.items() if each.module == TRAINING)
        raise ConfigurationError(f"{command!r} can't be run on a Ray cluster; {names} can.")
    for name, value, least in (("workers", workers, 1), ("failures", failures, 0)):
        if not is_whole(value, least):
            raise ConfigurationError(f"--{name} {value} must be {least} or more.")
    given = {word.partition("=")[0] for word in words}
    if given & {"--trainer.devices", "--trainer.num_nodes"}:
        raise ConfigurationError(
            "Ray decides where workers run: leave out --trainer.devices and --trainer.num_nodes, and say --workers."
        )
    if command == "fit" and "--ckpt_path" not in given:
        words = [*words, "--ckpt_path", "last"]
    with importing_extra("ray", "python -m lit_rlhf.launch.ray"):
        import torch  # noqa: PLC0415
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

    _check(words)
    TorchTrainer(
        _work,
        train_loop_config={"directory": str(Path.cwd()), "words": list(words)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            storage_path=str(storage.absolute()),
            failure_config=FailureConfig(max_failures=failures),
        ),
    ).fit()


def _check(words: Sequence[str]) -> None:
    """Have a wrong command line refused here, where it is not taken for a worker that was lost."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            lit_rlhf([*words, "--print_config"])
        except SystemExit as ended:
            if ended.code:
                raise


def _work(config: dict[str, Any]) -> None:
    """One worker: what Ray knows of it, by the names that torchrun gives it, and the command."""
    from ray.train import get_context

    context = get_context()
    here, all_of_them = context.get_local_world_size(), context.get_world_size()
    counts = gather_objects(here)
    if len(set(counts)) > 1:
        raise ConfigurationError(
            f"Ray put {sorted(set(counts))} of {all_of_them} workers on its machines, and Lightning wants as many on "
            "each. Take --workers a multiple of what a machine has room for."
        )
    os.chdir(config["directory"])
    # RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, and the process group is there.
    os.environ |= {
        "GROUP_RANK": str(context.get_node_rank()),
        "TORCHELASTIC_RUN_ID": context.get_experiment_name(),
    }
    machines = ["--trainer.devices", str(here), "--trainer.num_nodes", str(all_of_them // here)]
    lit_rlhf([*config["words"], *machines])
