"""A run that is killed by SIGKILL and started again with `ckpt_path="last"` ends as if it had never been killed.

Equal to the last bit: the whole last checkpoint (parameters, optimizer, schedule, KL controller, running moments,
position in the data, Lightning's loops), the logged metrics and the samples.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.invariants.resume_plans import (
    KILLED,
    checkpoint_of,
    difference,
    execute,
    log_of,
    run,
    write_world,
)
from tests.loopback import serving
from tests.unit.rollout.fake_vllm import FakeServer

KILLS: dict[str, tuple[dict[str, Any], int]] = {
    # what is done to the run, and after which iteration it goes on (checkpoints are written every second one)
    "in a rollout": ({"point": "rollout", "iteration": 7}, 6),
    "between minibatches": ({"point": "minibatch", "iteration": 7}, 6),
    "in a step": ({"point": "step", "iteration": 7}, 6),
    "while a checkpoint is written": ({"point": "writing", "iteration": 8}, 6),
    "after a checkpoint took its place": ({"point": "replaced", "iteration": 8}, 8),
    "before the first checkpoint": ({"point": "rollout", "iteration": 1}, 0),
    "before the first checkpoint, in a step": ({"point": "step", "iteration": 1}, 0),
}
OF_POLICIES = [name for name in KILLS if "in a step" not in name]
OF_OTHERS = [
    name for name, (kill, _) in KILLS.items() if kill["point"] not in ("rollout", "minibatch")
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data of all runs."""
    return write_world(tmp_path_factory.mktemp("world"))


def check(
    tmp: Path, world: Path, module: str, kills: list[str], dying_rank: int = 0, **options: Any
) -> None:
    plan = [run(tmp / "whole", world, module, **options)]
    for name in kills:
        kill, _ = KILLS[name]
        rank = dying_rank if kill["point"] in ("rollout", "minibatch", "step") else 0
        plan.append(run(tmp / name, world, module, kill=kill | {"rank": rank}, **options))
        plan.append(run(tmp / name, world, module, ckpt_path="last", **options))
    codes = execute(plan, tmp)
    assert set(codes[0]) == {0}, log_of(tmp / "whole")
    whole = checkpoint_of(tmp / "whole")
    for name, killed, resumed in zip(kills, codes[1::2], codes[2::2], strict=True):
        log = log_of(tmp / name)
        assert KILLED in killed, log
        assert set(resumed) == {0}, log
        went_on = (
            f"Going on after iteration {KILLS[name][1]}."
            if KILLS[name][1]
            else "so training starts anew"
        )
        assert went_on in log, f"{name}: {log}"
        assert difference(checkpoint_of(tmp / name), whole) is None, name
        for file in (tmp / "whole" / "records").iterdir():
            assert (tmp / name / "records" / file.name).read_bytes() == file.read_bytes(), (
                f"{name}: {file.name}"
            )


def test_ppo_goes_on_bit_for_bit(tmp_path: Path, world: Path) -> None:
    check(tmp_path, world, "ppo", ["in a rollout", "while a checkpoint is written"])


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ranks"), [("one", 1), ("ddp", 2)])
def test_what_was_sampled_ahead_is_trained_on(
    tmp_path: Path, world: Path, strategy: str, ranks: int
) -> None:
    """Between minibatches the next batch is being sampled; the server of all runs outlives them."""
    kills = ["between minibatches", "while a checkpoint is written"]
    with serving(FakeServer(world / "tiny-model")) as server:
        options = {"urls": [server.url], "strategy": strategy, "ranks": ranks}
        check(tmp_path, world, "ahead", kills, dying_rank=ranks - 1, **options)


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", ["one", "ddp", "fsdp2"])
@pytest.mark.parametrize("module", ["sft", "reward", "dpo", "ppo", "grpo"])
def test_everything_goes_on_bit_for_bit(
    tmp_path: Path, world: Path, module: str, strategy: str, workers: int
) -> None:
    kills = OF_POLICIES if module in ("ppo", "grpo") else OF_OTHERS
    ranks = 1 if strategy == "one" else 2
    check(
        tmp_path,
        world,
        module,
        kills,
        dying_rank=ranks - 1,
        ranks=ranks,
        strategy=strategy,
        workers=workers,
    )
