"""Each guard fires on a run made to go wrong, and not before."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_rlhf.callbacks import CollapseGuard, IterationCheckpoint, PolicyCollapsedError
from lit_rlhf.callbacks.guards import distinct_2
from lit_rlhf.errors import ConfigurationError
from tests.unit.callbacks.standins import Data, Module, quiet_trainer

HEALTHY = {
    "kl": 1.0,
    "entropy": 2.0,
    "length": 10.0,
    "gold": 2.0,
    "response": "the film was a joy to see",
}


class Policy(Module):
    """Logs what its diary says for each iteration."""

    def __init__(self, diary: dict[int, dict[str, Any]]) -> None:
        super().__init__(manual=True)
        self.diary = diary
        self.weights: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Any]:
        self.weights.append(float(self.net[0].weight[0, 0].detach()))
        today = HEALTHY | self.diary.get(self.iteration, {})
        super().training_step(batch, batch_idx)
        self.log_dict(
            {
                "train/objective/kl": today["kl"],
                "train/objective/entropy": today["entropy"] * today["length"],
                "train/completions/mean_length": today["length"],
                "train/rewards/gold/mean": today["gold"],
                "train/rewards/proxy/mean": float(self.iteration),
            },
            batch_size=1,
        )
        return {"samples": [{"response": today["response"]}]}


def fit(
    tmp: Path, guard: CollapseGuard, ckpt_path: str | None = None, **troubles: tuple[Any, list[int]]
) -> Policy:
    diary: dict[int, dict[str, Any]] = {}
    for name, (value, iterations) in troubles.items():
        for iteration in iterations:
            diary.setdefault(iteration, {})[name] = value
    module = Policy(diary)
    checkpoint = IterationCheckpoint(str(tmp / "checkpoints"), every_n_iterations=1, keep_last=5)
    quiet_trainer(tmp, [guard, checkpoint]).fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    return module


def saved(tmp: Path) -> list[str]:
    return sorted(path.name for path in (tmp / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "kl",
            51.0,
            r"Iteration 7: the KL to the reference is 51 nats per sequence, above max_kl=50\.",
        ),
        ("kl", float("nan"), r"Iteration 7: the KL to the reference is nan"),
        (
            "entropy",
            0.05,
            r"Iteration 7: the entropy is 0.05 nats per token, below min_entropy=0\.1\.",
        ),
    ],
)
def test_kl_explosion_and_entropy_collapse_stop_the_run(
    tmp_path: Path, name: str, value: float, message: str
) -> None:
    guard = CollapseGuard(max_kl=50.0, min_entropy=0.1)
    with pytest.raises(
        PolicyCollapsedError, match=message + r".*from before: .*iteration-00000004\.ckpt"
    ):
        fit(tmp_path, guard, **{name: (value, [4, 5, 6])})
    assert saved(tmp_path)[-1] == "iteration-00000006.ckpt"  # not the one in which it was found


def test_a_falling_gold_reward_stops_the_run_where_the_proxy_still_rises(tmp_path: Path) -> None:
    guard = CollapseGuard(max_gold_drop=0.5, patience=2)
    said = r"Iteration 7: the gold reward is 0\.9, 1\.1 below its best, where .* max_gold_drop=0\.5.*iteration-00000005"
    with pytest.raises(PolicyCollapsedError, match=said):
        fit(tmp_path, guard, gold=(0.9, [5, 6, 7]))
    fit(tmp_path / "short", CollapseGuard(max_gold_drop=1.2, patience=2), gold=(0.9, [5, 6, 7]))


def test_without_a_gold_reward_its_guard_says_what_to_do(tmp_path: Path) -> None:
    class WithoutGold(Policy):
        def log_dict(self, dictionary: Any, **options: Any) -> None:
            super().log_dict(
                {name: x for name, x in dictionary.items() if "gold" not in name}, **options
            )

    trainer = quiet_trainer(tmp_path, [CollapseGuard(max_gold_drop=0.5)])
    with pytest.raises(ConfigurationError, match="MonitoredReward"):
        trainer.fit(WithoutGold({}), datamodule=Data())


def test_trouble_that_passes_is_let_pass(tmp_path: Path) -> None:
    fit(tmp_path, CollapseGuard(max_kl=50.0), kl=(99.0, [1, 2, 4, 5, 7, 8, 10, 11]))


def test_it_can_only_warn(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Iteration 5: the KL") as said:
        fit(
            tmp_path, CollapseGuard(max_kl=50.0, action="warn", patience=2), kl=(99.0, [3, 4, 5, 6])
        )
    assert len([warning for warning in said if "the KL" in str(warning.message)]) == 1


def test_rolling_back_restores_weights_and_goes_on_with_new_batches(tmp_path: Path) -> None:
    guard = CollapseGuard(max_kl=50.0, action="rollback", patience=2)
    with pytest.warns(
        UserWarning,
        match=r"Iteration 6: .* Rolled back to .*iteration-00000004\.ckpt \(1 of 3 times\)",
    ):
        module = fit(tmp_path, guard, kl=(99.0, [4, 5]))
    weights = module.weights  # at the beginning of each iteration
    assert weights[6] == weights[4]
    assert weights[5] != weights[4]
    assert weights[7] != weights[5]
    assert module.iteration == 12
    assert module.seen[6] != module.seen[4]


def test_rollbacks_come_to_an_end(tmp_path: Path) -> None:
    guard = CollapseGuard(max_kl=50.0, action="rollback", patience=1, max_rollbacks=2)
    with (
        pytest.warns(UserWarning, match="1 of 2"),
        pytest.warns(UserWarning, match="2 of 2"),
        pytest.raises(PolicyCollapsedError, match="Iteration 7"),
    ):
        fit(tmp_path, guard, kl=(99.0, [4, 5, 6]))


def test_without_a_checkpoint_from_before_it_stops(tmp_path: Path) -> None:
    with pytest.raises(PolicyCollapsedError, match="There is no checkpoint from before"):
        fit(tmp_path, CollapseGuard(max_kl=50.0, action="rollback"), kl=(99.0, [0, 1, 2]))


def test_repetition_raises_an_alarm(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"Iteration 6: responses repeat themselves: 0\.22 of their pairs"
    ) as said:
        fit(
            tmp_path,
            CollapseGuard(min_distinct=0.5),
            response=("so " + "good so " * 4 + "good", [3, 4, 5, 6, 7]),
        )
    assert len([warning for warning in said if "repeat" in str(warning.message)]) == 1


@pytest.mark.parametrize(("length", "ratio"), [(31.0, r"3\.10"), (3.0, r"0\.30")])
def test_length_drift_raises_an_alarm(tmp_path: Path, length: float, ratio: str) -> None:
    with pytest.warns(UserWarning, match=rf"Iteration 9: responses have {ratio} times the length"):
        fit(tmp_path, CollapseGuard(max_length_ratio=3.0), length=(length, [6, 7, 8, 9]))


def test_its_memory_survives_a_resume(tmp_path: Path) -> None:
    guard = CollapseGuard(max_kl=50.0, max_length_ratio=2.0)
    guard.lasting, guard.first_lengths, guard.rollbacks = {"kl": 2}, [3.0], 1
    guard.last_golds, guard.best_gold = [1.0], 2.0
    other = CollapseGuard(max_kl=50.0)
    other.load_state_dict(guard.state_dict())
    assert (other.lasting, other.first_lengths, other.rollbacks) == ({"kl": 2}, [3.0], 1)
    assert (other.last_golds, other.best_gold) == ([1.0], 2.0)


def test_distinct_pairs_are_counted_within_each_text() -> None:
    assert distinct_2(["a a a a"]) == pytest.approx(1 / 3)
    assert distinct_2(["a b c", "a b c"]) == 1.0
    assert distinct_2(["word", ""]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "watches nothing"),
        ({"max_kl": 0.0}, "max_kl must be above 0"),
        ({"max_kl": float("nan")}, "max_kl must be above 0"),
        ({"min_entropy": -1.0}, "min_entropy=-1.0"),
        ({"min_distinct": 1.5}, "min_distinct=1.5"),
        ({"max_length_ratio": 1.0}, "max_length_ratio=1.0"),
        ({"max_gold_drop": 0.0}, "max_gold_drop=0.0"),
        ({"max_kl": 1.0, "patience": 0}, "patience=0"),
        ({"max_kl": 1.0, "max_rollbacks": -1}, "max_rollbacks=-1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CollapseGuard(**options)


def test_what_cannot_be_guarded_is_refused(tmp_path: Path) -> None:
    class NoSamples(LightningModule):
        pass

    trainer = quiet_trainer(tmp_path, [])
    with pytest.raises(ConfigurationError, match="NoSamples draws none"):
        CollapseGuard(max_kl=1.0).setup(trainer, NoSamples(), "fit")
    with pytest.raises(ConfigurationError, match="needs an IterationCheckpoint"):
        CollapseGuard(max_kl=1.0, action="rollback").setup(trainer, Policy({}), "fit")
