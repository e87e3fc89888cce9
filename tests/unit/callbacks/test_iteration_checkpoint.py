import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_rlhf.callbacks import AtomicCheckpointIO, IterationCheckpoint
from lit_rlhf.errors import CheckpointError, ConfigurationError, FileError
from lit_rlhf.internals.lightning import current_metrics, iterations_done
from tests.unit.callbacks.standins import Data, Module, quiet_trainer
from tests.walks import walk

ITERATIONS = 12  # two epochs of six batches


class KilledError(Exception):
    pass


class Mortal(Module):
    """Dies in the rollout of an iteration, after everything of the iteration that could have been saved."""

    dies_at: int | None = None

    def during_rollout(self) -> None:
        if self.iteration == self.dies_at:
            raise KilledError


class Diary(Callback):
    """What loggers would be given, and when."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, Any]] = []

    def note(self, trainer: Trainer, what: str) -> None:
        batches = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.rows.append(
            (
                iterations_done(trainer),
                what,
                (batches, trainer.current_epoch, current_metrics(trainer)),
            )
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.note(trainer, "step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(trainer, "epoch")


class Run:
    """One process's part of a run."""

    def __init__(
        self,
        tmp: Path,
        *,
        manual: bool = False,
        dies_at: int | None = None,
        ckpt_path: str | None = None,
        **rest: Any,
    ) -> None:
        every, workers = rest.pop("every", 1), rest.pop("workers", 0)
        self.checkpoint = IterationCheckpoint(
            str(tmp / "checkpoints"), every_n_iterations=every, keep_last=rest.pop("keep", 2)
        )
        self.module, self.diary = Mortal(manual), Diary()
        self.module.dies_at = dies_at
        self.trainer = quiet_trainer(
            tmp, [self.checkpoint, self.diary, *rest.pop("callbacks", [])], **rest
        )
        try:
            self.trainer.fit(self.module, datamodule=Data(workers), ckpt_path=ckpt_path)
        except KilledError:
            assert dies_at is not None

    def state(self) -> dict[str, Any]:
        optimizer = self.trainer.optimizers[0].state_dict()
        moments = {
            f"{i}.{name}": torch.as_tensor(v)
            for i, s in optimizer["state"].items()
            for name, v in s.items()
        }
        return {
            **{name: value.tolist() for name, value in self.module.state_dict().items()},
            **{name: value.tolist() for name, value in moments.items()},
            "lr": optimizer["param_groups"][0]["lr"],
            "global_step": self.trainer.global_step,
            "epoch": self.trainer.current_epoch,
        }

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoint.directory.iterdir())


def spliced(first: Run, second: Run, start: int) -> list[Any]:
    """The diary of a run that was killed and went on after `start` iterations."""
    return [row for row in first.diary.rows if row[0] <= start] + second.diary.rows


VALIDATION = {"limit_val_batches": 2}
CASES = {
    "manual": {"manual": True},
    "automatic": {},
    "validation each epoch": {"manual": True, **VALIDATION},
    "validation within epochs": {"manual": True, "val_check_interval": 2, **VALIDATION},
    "validation across epochs": {
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        **VALIDATION,
    },
    "accumulation": {"accumulate_grad_batches": 4},
    "part of the data": {"manual": True, "limit_train_batches": 5},
}


@pytest.mark.parametrize(
    ("every", "deaths"), [(1, (0, 3, 6, 11)), (4, (5, 9))], ids=["every", "every 4"]
)
@pytest.mark.parametrize("case", walk(CASES, "manual", "automatic"))
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, case: str, every: int, deaths: tuple[int, ...]
) -> None:
    options = CASES[case]
    whole = Run(tmp_path / "whole", every=every, **options)
    for dies_at in deaths:
        if dies_at >= len(whole.module.seen):
            continue
        tmp = tmp_path / str(dies_at)
        first = Run(tmp, every=every, dies_at=dies_at, **options)
        if not first.checkpoint.checkpoints():
            with pytest.warns(UserWarning, match="starts anew"):
                second = Run(tmp, every=every, ckpt_path="last", **options)
        else:
            second = Run(tmp, every=every, ckpt_path="last", **options)
        start = len(whole.module.seen) - len(second.module.seen)
        assert dies_at - 2 * every < start <= dies_at or "accumulate_grad_batches" in options
        assert first.module.seen[:start] + second.module.seen == whole.module.seen
        assert second.state() == whole.state()
        assert spliced(first, second, start) == whole.diary.rows


@pytest.mark.parametrize("dies_at", [2, 8])
def test_loader_workers_change_nothing(tmp_path: Path, dies_at: int) -> None:
    whole = Run(tmp_path / "whole", manual=True)
    first = Run(tmp_path, manual=True, dies_at=dies_at, workers=2)
    second = Run(tmp_path, manual=True, ckpt_path="last", workers=2)
    assert second.state() == whole.state()
    assert spliced(first, second, dies_at) == whole.diary.rows


def test_training_can_be_prolonged(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", manual=True)
    first = Run(tmp_path, manual=True, max_epochs=1)
    second = Run(tmp_path, manual=True, ckpt_path="last")
    assert second.state() == whole.state()
    assert spliced(first, second, 6) == whole.diary.rows


def test_the_newest_are_kept_and_the_last_is_always_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, every=5, keep=3)
    assert run.names == [f"iteration-{n:08d}.ckpt" for n in (5, 10, 12)]
    run = Run(tmp_path / "two", every=1)
    assert run.names == [f"iteration-{n:08d}.ckpt" for n in (11, 12)]


def test_an_exception_saves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, every=2, dies_at=5)
    assert run.names == [f"iteration-{n:08d}.ckpt" for n in (2, 4)]


@pytest.mark.parametrize(
    ("number", "said"), [(0, "start anew"), (3, r"--ckpt_path last .*iteration-00000002\.ckpt")]
)
def test_ctrl_c_says_how_to_go_on(number: int, said: str, tmp_path: Path) -> None:
    class CtrlC(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == number:
                raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)  # which Lightning ignores from then on
    try:
        with pytest.warns(UserWarning, match=said), pytest.raises(SystemExit):
            Run(tmp_path, every=2, callbacks=[CtrlC()])
    finally:
        signal.signal(signal.SIGINT, before)


def test_accumulated_gradients_are_waited_for(tmp_path: Path) -> None:
    run = Run(
        tmp_path, every=1, keep=9, accumulate_grad_batches=4
    )  # of six batches: after the fourth and the last
    assert run.names == [f"iteration-{n:08d}.ckpt" for n in (4, 6, 10, 12)]


def test_a_time_limit_saves_within_the_epoch(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", manual=True)

    class Stop(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, *args: Any
        ) -> None:
            trainer.should_stop = trainer.should_stop or iterations_done(trainer) == 3

    Run(tmp_path, manual=True, every=100, callbacks=[Stop()])
    second = Run(tmp_path, manual=True, every=100, ckpt_path="last")
    assert second.state() == whole.state()


def test_early_stopping_and_timer_work_beside_it(tmp_path: Path) -> None:
    stopping = EarlyStopping("val/loss", patience=1, min_delta=1e9)
    run = Run(
        tmp_path,
        every=100,
        callbacks=[stopping, Timer(duration="00:01:00:00")],
        limit_val_batches=2,
    )
    assert run.names == [f"iteration-{ITERATIONS:08d}.ckpt"]


def corrupt(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_torn_checkpoint_is_passed_over_aloud(tmp_path: Path) -> None:
    first = Run(tmp_path, manual=True, dies_at=5)
    corrupt(first.checkpoint.directory / "iteration-00000005.ckpt")
    passed_over = r"Passed over iteration-00000005\.ckpt.* Going on from iteration-00000004\.ckpt"
    with (
        pytest.warns(UserWarning, match=passed_over),
        pytest.warns(UserWarning, match=r"renamed to \*\.abandoned"),
    ):
        second = Run(tmp_path, manual=True, ckpt_path="last")
    assert len(second.module.seen) == ITERATIONS - 4
    assert second.state() == Run(tmp_path / "whole", manual=True).state()


def test_it_is_an_error_if_every_checkpoint_is_torn(tmp_path: Path) -> None:
    first = Run(tmp_path, dies_at=5)
    for path in first.checkpoint.directory.iterdir():
        corrupt(path)
    with pytest.raises(
        CheckpointError,
        match=r"None of the checkpoints .* iteration-00000005\.ckpt: .* iteration-00000004\.ckpt",
    ):
        Run(tmp_path, ckpt_path="last")


def test_last_without_a_checkpoint_starts_anew_aloud(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"no checkpoint in .*checkpoints yet, so training starts anew"
    ) as said:
        run = Run(tmp_path, ckpt_path="last")
    assert (
        len([warning for warning in said if warning.category is not FutureWarning]) == 1
    )  # and not Lightning's own
    assert len(run.module.seen) == ITERATIONS


def test_a_new_run_in_a_used_directory_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, dies_at=3)
    with pytest.raises(
        ConfigurationError,
        match=r"holds checkpoints of an earlier run \(the newest: iteration-00000003.*another --run_dir",
    ):
        Run(tmp_path)


def test_going_back_sets_the_abandoned_future_aside(tmp_path: Path) -> None:
    first = Run(tmp_path, manual=True, dies_at=6, keep=9)
    with pytest.warns(
        UserWarning,
        match=r"goes on from iteration 3 .* iteration-00000006\.ckpt, .* iteration-00000004",
    ):
        second = Run(
            tmp_path,
            manual=True,
            keep=2,
            ckpt_path=str(first.checkpoint.directory / "iteration-00000003.ckpt"),
            dies_at=5,
        )
    assert second.names == [
        "iteration-00000004.ckpt",
        "iteration-00000004.ckpt.abandoned",
        "iteration-00000005.ckpt",
        "iteration-00000005.ckpt.abandoned",
        "iteration-00000006.ckpt.abandoned",
    ]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    first = Run(tmp_path, dies_at=3)
    newest = first.checkpoint.directory / "iteration-00000003.ckpt"
    state = torch.load(newest, weights_only=True)
    state["lit_rlhf.IterationCheckpoint"]["world_size"] = 4
    torch.save(state, newest)
    with pytest.raises(CheckpointError, match=r"was written by 4 processes and this run has 1"):
        Run(tmp_path, ckpt_path="last")


class SavesOnException(Callback):
    """As Lightning's OnExceptionCheckpoint and its handler of SLURM's signal do."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        trainer.save_checkpoint(f"{trainer.default_root_dir}/exception.ckpt")


def test_what_was_saved_within_an_iteration_is_no_state_to_go_on_from(tmp_path: Path) -> None:
    Run(tmp_path, manual=True, dies_at=4, callbacks=[SavesOnException()])
    with pytest.raises(
        CheckpointError, match=r"exception\.ckpt was written in the midst of iteration 5"
    ):
        Run(tmp_path, manual=True, ckpt_path=str(tmp_path / "exception.ckpt"))


def test_validation_takes_the_last_checkpoint_too(tmp_path: Path) -> None:
    first = Run(tmp_path)
    first.trainer.validate(first.module, datamodule=Data(), ckpt_path="last", verbose=False)
    assert first.trainer.ckpt_path == str(first.checkpoint.directory / "iteration-00000012.ckpt")


def test_best_is_left_to_a_model_checkpoint(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss")
    run = Run(tmp_path, callbacks=[best], limit_val_batches=2)
    assert run.trainer.checkpoint_callback is best


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, fast_dev_run=2)
    assert not run.checkpoint.directory.exists()


def test_atomic_writing_is_installed_unless_another_was_chosen(tmp_path: Path) -> None:
    class Chosen(TorchCheckpointIO):
        pass

    assert isinstance(Run(tmp_path / "a").trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert isinstance(
        Run(tmp_path / "b", plugins=[Chosen()]).trainer.strategy.checkpoint_io, Chosen
    )


def test_checkpoints_in_parts_are_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [])
    trainer._accelerator_connector.strategy = ModelParallelStrategy()
    with pytest.raises(ConfigurationError, match="save_distributed_checkpoint: false"):
        IterationCheckpoint(str(tmp_path)).setup(trainer, Module(), "fit")


def test_a_limit_in_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"trainer\.max_steps=11 .*Add StopAfter\(steps=11\)"
    ):
        Run(tmp_path, max_steps=11)


@pytest.mark.parametrize(
    ("option", "value"),
    [("every_n_iterations", 0), ("every_n_iterations", -1), ("keep_last", 0), ("keep_last", 1)],
)
def test_options_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}={value}"):
        IterationCheckpoint("somewhere", **{option: value})


@pytest.mark.parametrize("manual", [True, False])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, manual: bool) -> None:
    class Diverges(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            if iterations_done(trainer) == 3:
                next(module.parameters()).data.fill_(float("nan"))

    with pytest.raises(
        CheckpointError, match=r"net\.0\.weight.* NaN or infinite after iteration 3"
    ):
        Run(tmp_path, manual=manual, callbacks=[Diverges()])
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["iteration-00000001.ckpt", "iteration-00000002.ckpt"]


def test_a_second_process_is_kept_out_and_a_dead_one_keeps_nobody_out(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lit_rlhf.files import DirectoryLock; "
        "DirectoryLock(Path(sys.argv[1])).take(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoints")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileError, match=rf"Another run is writing .*process {other.pid} on"):
            Run(tmp_path)
        other.kill()
    assert Run(tmp_path).names == ["iteration-00000011.ckpt", "iteration-00000012.ckpt"]
