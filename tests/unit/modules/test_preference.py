"""PreferenceModule on the tiny model: statistics, references, training, logging, checkpoints, bad options."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import CheckpointError, ConfigurationError, DataError
from lit_rlhf.models import LoraSpec, ModelSpec, ValueAdapter
from lit_rlhf.modules import PreferenceModule
from lit_rlhf.modules.means import row_means
from lit_rlhf.objectives import (
    DPO,
    DROV,
    KTO,
    NLL,
    TDPO1,
    WPO,
    BCOPair,
    LengthDesensitizedDPO,
    PlackettLuceDPO,
    PreferenceLoss,
    SimPO,
    SoftLabelDPO,
    WeightedSum,
)
from tests.reference.branches import row
from tests.tolerances import FP32_MODEL, FP64

PAIRS = [
    ([11, 12, 13, 14, 15], [[21, 22, 23, 2], [24, 25, 26, 27, 2]]),
    ([31, 32, 33], [[41, 2], [42, 43, 44, 2]]),
    ([51], [[52, 53, 54, 55, 2], [56, 57, 2]]),
    ([61, 62], [[63, 64, 2], [65, 2]]),
]
ARRANGEMENTS = {
    "full": {},
    "lora": {"lora": LoraSpec(rank=4)},
    "nf4": {"lora": LoraSpec(rank=4), "quantization": "nf4"},
}


def batch_of(rows: Any = PAIRS, **columns: Tensor) -> Any:
    width = max(len(prompt) + sum(map(len, branches)) for prompt, branches in rows)
    tensors = [
        torch.tensor(c)
        for c in zip(*(row(prompt, branches, width) for prompt, branches in rows), strict=True)
    ]
    names = ("input_ids", "branch_ids", "position_ids")
    return dict(zip(names, tensors, strict=True)) | {"index": torch.arange(len(rows))} | columns


def singles(**columns: Tensor) -> Any:
    return batch_of([(prompt, branches[:1]) for prompt, branches in PAIRS], **columns)


def make(
    model_dir: Path, loss: PreferenceLoss | None = None, kind: str = "lora", **options: Any
) -> PreferenceModule:
    defaults: dict[str, Any] = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2)}
    return PreferenceModule(
        ModelSpec(name=str(model_dir), **ARRANGEMENTS[kind]), loss, **(defaults | options)
    )


def ready(
    model_dir: Path, loss: PreferenceLoss | None = None, kind: str = "lora", **options: Any
) -> PreferenceModule:
    module = make(model_dir, loss, kind, **options)
    module.configure_model()
    return module


def moved(module: PreferenceModule) -> PreferenceModule:
    """A policy that has left its reference."""
    draw = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return module


class Logged(Callback):
    """Keeps what a stage logged."""

    def __init__(self) -> None:
        self.train: list[dict[str, float]] = []
        self.val: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.train.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.val = {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit(
    module: PreferenceModule, batches: list[Any], epochs: int = 1, **options: Any
) -> tuple[Trainer, Logged]:
    logged = Logged()
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "callbacks": [logged],
    }
    trainer = Trainer(**(defaults | options))
    loader = DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, loader)
    return trainer, logged


# -- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_separate_rows(tiny_model_dir: Path) -> None:
    module = ready(tiny_model_dir, kind="full")
    stats = module(batch_of())
    for i, (prompt, branches) in enumerate(PAIRS):
        for k, branch in enumerate(branches):
            ids = torch.tensor([prompt + branch])
            logprobs = module.backbone.model(ids).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(branch))
            assert_close(stats.logprobs[i, k], expected, **FP32_MODEL)
            assert stats.lengths[i, k] == len(branch)


@pytest.mark.parametrize("kind", ARRANGEMENTS)
def test_policy_is_the_reference_at_first(tiny_model_dir: Path, kind: str) -> None:
    module = ready(tiny_model_dir, kind=kind)
    output = module.loss_output(batch_of())
    assert_close(output.loss, torch.full((4,), math.log(2)), **FP32_MODEL)
    assert_close(output.metrics["rewards/margins"], torch.zeros(4), **FP32_MODEL)
    moved(module)
    assert module.loss_output(batch_of()).metrics["rewards/margins"].abs().max() > 1e-3


@pytest.mark.parametrize("kind", ARRANGEMENTS)
def test_the_reference_stays(tiny_model_dir: Path, kind: str) -> None:
    module = ready(tiny_model_dir, kind=kind)
    before = module.reference_statistics(batch_of()).logprobs
    after = moved(module).reference_statistics(batch_of())
    assert_close(after.logprobs, before, **FP64)
    assert not after.logprobs.requires_grad
    assert all(
        parameter.requires_grad for name, parameter in module.named_parameters() if "lora_" in name
    )


def test_precomputed_log_probs_stand_in_for_the_reference(tiny_model_dir: Path) -> None:
    live = moved(ready(tiny_model_dir, kind="full"))
    given = {"ref_logprobs": live.predict_step(batch_of(), 0)["ref_logprobs"]}
    expected = live.loss_output(batch_of()).loss
    assert_close(live.loss_output(batch_of(**given)).loss, expected)
    stored = moved(ready(tiny_model_dir, kind="full", reference="precomputed"))
    assert "model" not in stored.reference._modules
    assert_close(stored.loss_output(batch_of(**given)).loss, expected)
    # "live" never looks at them, and what isn't there can't be taken.
    wrong = batch_of(ref_logprobs=torch.zeros(4, 2))
    asked = moved(ready(tiny_model_dir, kind="full", reference="live"))
    assert_close(asked.loss_output(wrong).loss, expected)
    with pytest.raises(DataError, match=r"ref_logprobs.*which has none"):
        stored.loss_output(batch_of())
    with pytest.raises(DataError, match=r"of 2 completions.*which has 3"):
        stored.loss_output(batch_of(ref_logprobs=torch.zeros(4, 3)))


def test_no_reference_is_kept_for_losses_without(tiny_model_dir: Path) -> None:
    module = ready(tiny_model_dir, SimPO(), kind="full")
    assert "model" not in module.reference._modules
    assert module.loss_output(batch_of()).loss.isfinite().all()
    assert set(module.predict_step(batch_of(), 0)) == {"index", "logprobs", "lengths"}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_vocabulary_statistics(tiny_model_dir: Path, kind: str) -> None:
    module = moved(ready(tiny_model_dir, WeightedSum([TDPO1(), WPO()]), kind=kind))
    reference, against = module._live_reference(batch_of())
    policy = module(batch_of(), against)
    plain = module(batch_of())
    assert_close(policy.logprobs, plain.logprobs, **FP32_MODEL)
    assert_close(reference.logprobs, module.reference_statistics(batch_of()).logprobs, **FP32_MODEL)
    assert torch.equal(policy.lengths, plain.lengths)
    prompt, branches = PAIRS[0]
    model, role = module.reference.beside(module.backbone)
    ids = torch.tensor([prompt + branches[1]])
    inside = slice(len(prompt) - 1, -1)
    with torch.no_grad(), module.backbone.use_role("policy"):
        p = module.backbone.model(ids).logits[0, inside].log_softmax(-1)
    with torch.no_grad(), model.use_role(role):
        q = model.model(ids).logits[0, inside].log_softmax(-1)
    assert policy.kl is not None and policy.collision is not None
    assert_close(policy.kl[0, 1], (q.exp() * (q - p)).sum(), **FP32_MODEL)
    assert_close(policy.collision[0, 1], p.exp().square().sum(-1).log().sum(), **FP32_MODEL)
    policy.kl.sum().backward()
    assert any(x.grad is not None and x.grad.abs().max() > 0 for x in module.parameters())


def test_token_statistics_only_where_asked(tiny_model_dir: Path) -> None:
    assert ready(tiny_model_dir)(batch_of()).token_logprobs is None
    module = ready(tiny_model_dir, LengthDesensitizedDPO())
    stats = module(batch_of())
    assert stats.token_logprobs is not None
    assert_close(stats.token_logprobs.sum(-1), stats.logprobs)
    assert module.loss_output(batch_of()).loss.isfinite().all()


def test_kto_scores_each_prompt_with_the_next_completion(tiny_model_dir: Path) -> None:
    module = moved(ready(tiny_model_dir, KTO()))
    labels = torch.tensor([True, False, True, False])
    output = module.loss_output(singles(label=labels))
    turned = [(prompt, [PAIRS[(i + 1) % 4][1][0]]) for i, (prompt, _) in enumerate(PAIRS)]
    module.objective.needs_mismatched = False  # score these completions as they stand
    other = batch_of(turned)
    u = (module(other).logprobs - module.reference_statistics(other).logprobs)[:, 0]
    assert_close(output.metrics["kl"], u.mean().clamp_min(0).expand(4), **FP32_MODEL)


@pytest.mark.parametrize("critic", [None, ValueAdapter()])
def test_dro_v_learns_a_value(tiny_model_dir: Path, critic: Any) -> None:
    module = ready(tiny_model_dir, DROV(), critic=critic)
    output = module.loss_output(singles(score=torch.tensor([1.0, -1.0, 0.5, 2.0])))
    module.reduce(output.loss, {}).backward()
    gradient = module.backbone.heads["value"].weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_rows_weigh_what_the_batch_says(tiny_model_dir: Path) -> None:
    module = moved(ready(tiny_model_dir))
    loss = module.loss_output(batch_of()).loss
    weight = torch.tensor([1.0, 0.0, 3.0, 0.0])
    assert_close(module.reduce(loss, {"weight": weight}), (loss[0] + 3 * loss[2]) / 4)
    assert_close(module.reduce(loss, {}), loss.mean())
    assert module.reduce(loss, {"weight": torch.zeros(4)}).item() == 0.0


def test_padding_and_order_of_rows_change_nothing(tiny_model_dir: Path) -> None:
    module = moved(ready(tiny_model_dir, kind="full"))
    loss = module.loss_output(batch_of()).loss
    longer = batch_of([*PAIRS, ([1] * 9, [[5] * 9, [6] * 9])])
    assert_close(module.loss_output(longer).loss[:4], loss, **FP32_MODEL)
    turned = batch_of(PAIRS[::-1])
    assert_close(module.loss_output(turned).loss.flip(0), loss, **FP32_MODEL)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARRANGEMENTS)
def test_training_separates_the_pairs(tiny_model_dir: Path, kind: str) -> None:
    module = make(tiny_model_dir, DPO(beta=0.5), kind)
    _, logged = fit(module, [batch_of()], epochs=8)
    assert logged.train[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert logged.train[0]["train/rewards/margins"] == pytest.approx(0.0, abs=1e-3)
    assert logged.val["val/rewards/accuracies"] == 1.0
    assert logged.val["val/loss"] < 0.5
    expected = {"chosen", "rejected", "accuracies", "margins"}
    assert {f"train/rewards/{name}" for name in expected} <= set(logged.train[-1])
    assert {"train/logps/chosen", "train/logps/rejected", "val/loss"} <= set(logged.val)


def test_ranked_lists_train(tiny_model_dir: Path) -> None:
    rows = [(prompt, [*branches, [9, 9, 2]]) for prompt, branches in PAIRS]
    score = torch.tensor([[2.0, 1.0, 0.0]]).expand(4, -1)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 2] = False
    module = make(tiny_model_dir, PlackettLuceDPO(beta=0.5))
    _, logged = fit(module, [batch_of(rows, score=score, branch_mask=mask)], epochs=6)
    assert logged.train[-1]["train/loss"] < 0.6 * logged.train[0]["train/loss"]


def test_a_batch_of_one_class_logs_the_other_not_at_all(tiny_model_dir: Path) -> None:
    module = make(tiny_model_dir, KTO())
    _, logged = fit(module, [singles(label=torch.ones(4, dtype=torch.bool))])
    assert "val/rewards/chosen" in logged.val
    assert "val/rewards/rejected" not in logged.val
    assert math.isfinite(logged.val["val/loss"])


def test_metrics_are_means_over_the_rows_they_concern() -> None:
    metrics = {"a": torch.tensor([1.0, math.nan, 3.0]), "b": torch.tensor([math.nan] * 3)}
    found = row_means(metrics, sum_over_ranks)
    assert found == {"a": (2.0, 2)}


def test_bad_columns_stop_training_at_once(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match=r"p_chosen=1.5"):
        fit(make(tiny_model_dir, SoftLabelDPO()), [batch_of(p_chosen=torch.full((4,), 1.5))])
    with pytest.raises(DataError, match=r"DPO takes 2 completions.*batch has 1"):
        fit(make(tiny_model_dir, DPO()), [singles()])


def test_running_statistics_survive_a_checkpoint(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make(tiny_model_dir, BCOPair(beta=0.5))
    trainer, _ = fit(module, [batch_of(), batch_of(PAIRS[:2])])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    restored = make(tiny_model_dir, BCOPair(beta=0.5))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    restored.on_load_checkpoint(checkpoint)
    restored.load_state_dict(checkpoint["state_dict"], strict=False)
    assert isinstance(restored.objective, BCOPair) and isinstance(module.objective, BCOPair)
    assert_close(restored.objective.shift.mean, module.objective.shift.mean)
    assert restored.objective.shift.count.item() == 12
    assert_close(restored(batch_of()).logprobs, module(batch_of()).logprobs)
    with pytest.raises(CheckpointError, match="DPO"):
        make(tiny_model_dir, DPO()).on_load_checkpoint(checkpoint)


def test_options_that_contradict_each_other_are_refused(tiny_model_dir: Path) -> None:
    for loss, what in ((TDPO1(), "kl"), (LengthDesensitizedDPO(), "tokens"), (KTO(), "KTO's KL")):
        with pytest.raises(ConfigurationError, match=what):
            make(tiny_model_dir, loss, reference="precomputed")
    with pytest.raises(ConfigurationError, match="learns no value"):
        make(tiny_model_dir, DPO(), critic=ValueAdapter())


def test_a_supervised_loss_needs_no_reference(tiny_model_dir: Path) -> None:
    module = make(tiny_model_dir, NLL())
    _, logged = fit(module, [singles()], epochs=3)
    assert logged.train[-1]["train/loss"] < logged.train[0]["train/loss"]


def test_pairs_are_no_single_completions(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match=r"KTO takes 1 completions.*batch has 2"):
        ready(tiny_model_dir, KTO()).loss_output(batch_of(label=torch.ones(4, dtype=torch.bool)))
