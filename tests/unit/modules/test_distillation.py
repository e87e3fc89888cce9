"""Distillation from outside: what the loss compares, what of the teacher is asked and kept, and what is refused."""

import ast
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.callbacks import MovingReference, RunSummary, SampleTable
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec
from lit_rlhf.modules import (
    DistillationPolicyModule,
    GRPOPolicyModule,
    Teacher,
    TeacherAdapter,
    TeacherModel,
    Updates,
)
from lit_rlhf.objectives import GeneralizedJSD
from lit_rlhf.rewards import NoReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EvaluatedRollout
from tests.reference.models import plain_model
from tests.tolerances import FP32, FP32_MODEL, FP64
from tests.unit.modules.one_iteration import (
    TokenReward,
    build,
    iterate,
    parameters_of,
    text_batch,
)
from tests.unit.modules.policies import fit, make_trainer, prompt_batch, prompt_loader
from tests.walks import walk

SHORT = Sampling(max_new_tokens=5, temperature=0.8)


def teacher_spec(model_dir: Path, **other: Any) -> ModelSpec:
    """Another model with the same tokenizer, of another width."""
    config: Mapping[str, Any] = json.loads((model_dir / "config.json").read_text())
    return ModelSpec(config={**config, **other}, tokenizer=str(model_dir), init_seed=7)


def make(model_dir: Path, teacher: Teacher | None = None, **options: Any) -> Any:
    lora = options.pop("lora", None)
    teacher = teacher or TeacherModel(teacher_spec(model_dir))
    spec = ModelSpec(name=str(model_dir), lora=lora)
    return DistillationPolicyModule(spec, teacher=teacher, sampling=SHORT, **options)


def logits_of(model: Any, rollout: EvaluatedRollout) -> list[Tensor]:
    """Tempered logits at each sample's tokens, one plain row at a time."""
    found = []
    for n in range(len(rollout.response_mask)):
        prompt = rollout.prompts.ids[n // rollout.num_samples]
        prompt = prompt[rollout.prompts.mask[n // rollout.num_samples]]
        answer = rollout.completions.tokens[n][rollout.response_mask[n]]
        ids = torch.cat([prompt, answer])[None]
        at = slice(len(prompt) - 1, ids.shape[1] - 1)
        found.append(model(input_ids=ids).logits[0, at].double() / SHORT.temperature)
    return found


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("beta", walk([0.0, 0.5, 1.0], 0.5))
def test_the_loss_compares_whole_distributions_at_the_students_tokens(
    tiny_model_dir: Path, beta: float, lora: LoraSpec | None
) -> None:
    module = build(make(tiny_model_dir, divergence=GeneralizedJSD(beta), num_samples=2, lora=lora))
    rollout = module.estimate(module.collect(prompt_batch(tiny_model_dir))[0])
    output = module.loss(rollout)
    with torch.no_grad():
        ours = logits_of(plain_model(tiny_model_dir), rollout)
        theirs = logits_of(module.reference.model.model, rollout)
    mask = rollout.response_mask
    for n, (student, teacher) in enumerate(zip(ours, theirs, strict=True)):
        expected = GeneralizedJSD(beta)(student, teacher).float()
        assert_close(output.loss[n][mask[n]], expected, **FP32_MODEL)
        picks = rollout.completions.tokens[n][mask[n], None]
        ratio = [x.log_softmax(-1).gather(-1, picks).sum() for x in (student, teacher)]
        kl = output.metrics["objective/kl"][n]
        assert_close(kl, (ratio[0] - ratio[1]).float(), **FP32_MODEL)
    assert float(output.loss[~mask].detach().abs().sum()) == 0
    assert output.loss.requires_grad
    before, teacher_before = parameters_of(module), _state(module.reference.model)
    iterate(module, prompt_batch(tiny_model_dir))
    assert not torch.equal(parameters_of(module), before)
    assert_close(_state(module.reference.model), teacher_before, rtol=0, atol=0)


def _state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def test_the_student_comes_nearer_and_the_teacher_is_asked_once_a_minibatch(
    tiny_model_dir: Path,
) -> None:
    updates = Updates(epochs=1, minibatches=2)
    module = build(make(tiny_model_dir, updates=updates, num_samples=4))
    passes = []
    module.reference.model.register_forward_hook(lambda *_: passes.append(1))
    logged = [iterate(module, prompt_batch(tiny_model_dir), lr=2.0) for _ in range(20)]
    assert len(passes) == 20 * 2
    for name in ("train/loss/divergence_avg", "train/objective/kl"):
        assert logged[-1][name] < 0.7 * logged[0][name]
    assert "train/objective/scores" not in logged[0]


def test_a_reward_is_logged_and_teaches_nothing(tiny_model_dir: Path) -> None:
    plain, watched = (build(make(tiny_model_dir, reward=r)) for r in (None, TokenReward()))
    batch = prompt_batch(tiny_model_dir)
    unscored, scored = iterate(plain, batch), iterate(watched, batch)
    assert_close(parameters_of(plain), parameters_of(watched), rtol=0, atol=0)
    assert "train/objective/scores" not in unscored
    assert scored["train/objective/scores"] > 0


def test_given_answers_have_the_rest_of_the_weight(tiny_model_dir: Path) -> None:
    batch = {**prompt_batch(tiny_model_dir), "text": text_batch(tiny_model_dir)}
    steps = {}
    for lmbda, seed in ((1.0, 0), (0.3, 0), (1e-9, 0), (1e-9, 1)):
        updates = Updates(epochs=1, max_grad_norm=1e9)
        module = build(make(tiny_model_dir, lmbda=lmbda, updates=updates, seed=seed))
        before = parameters_of(module)
        logged = iterate(module, batch)
        steps[lmbda, seed] = parameters_of(module) - before
        assert ("train/loss/given_divergence_avg" in logged) == (lmbda < 1)
    samples, answers = steps[1.0, 0], steps[1e-9, 0]
    assert_close(steps[0.3, 0], 0.3 * samples + 0.7 * answers, **FP32_MODEL)
    assert_close(steps[1e-9, 1], answers, **FP32_MODEL)  # other samples, which have no weight
    assert float((samples - answers).abs().max()) > 1e-4


def test_a_share_of_answers_needs_answers(tiny_model_dir: Path) -> None:
    module = build(make(tiny_model_dir, lmbda=0.5))
    with pytest.raises(ConfigurationError, match=r"Distillation.*prompts alone.*PromptText"):
        iterate(module, prompt_batch(tiny_model_dir))
    with pytest.raises(ConfigurationError, match=r"lmbda=0.*\(0, 1\]"):
        make(tiny_model_dir, lmbda=0)


def test_nothing_is_shown_of_scores_that_nothing_gave(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [RunSummary(), SampleTable(dirpath=str(tmp_path))]
    trainer = make_trainer(callbacks=callbacks, limit_val_batches=1, max_steps=-1)
    loader = prompt_loader(tiny_model_dir, 4)
    trainer.fit(make(tiny_model_dir), loader, loader)
    known = trainer.callback_metrics.keys() | trainer.progress_bar_metrics.keys()
    assert {"kl", "train/objective/kl", "val/objective/kl"} <= known
    assert not [name for name in known if "scores" in name or name == "reward"]
    end = capsys.readouterr().out.partition("Done after")[2]
    assert "kl" in end
    assert not {"reward", "scores"} & set(re.findall(r"\w+", end))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {each["stage"] for each in samples} == {"train", "validation"}
    assert not [each for each in samples if "score" in each]


def test_checkpoints_hold_nothing_of_the_teacher(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = make(tiny_model_dir, lora=LoraSpec(rank=2))
    trainer = fit(module, tiny_model_dir)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    saved = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert not [name for name in saved["state_dict"] if name.startswith("reference.")]
    teacher = TeacherModel(teacher_spec(tiny_model_dir))
    again = DistillationPolicyModule.load_from_checkpoint(
        tmp_path / "student.ckpt",
        backbone=module.spec,
        teacher=teacher,
        sampling=SHORT,
    )
    again.configure_model()
    assert_close(parameters_of(again), parameters_of(module))


def test_an_adapter_on_the_students_base_teaches(tiny_model_dir: Path, tmp_path: Path) -> None:
    lora = LoraSpec(rank=2, dropout=0.5)
    grown = build(make(tiny_model_dir, lora=lora), moved=0.3)
    grown.backbone.save_adapter("policy", tmp_path, base=str(tiny_model_dir), task="CAUSAL_LM")
    module = build(
        make(tiny_model_dir, TeacherAdapter(str(tmp_path)), lora=LoraSpec(rank=2), num_samples=2)
    )
    rollout = module.estimate(module.collect(prompt_batch(tiny_model_dir))[0])
    first, second = (module.loss(rollout).loss for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)  # its dropout is off
    assert float(first.detach().sum()) > 0.01
    assert not any(
        weight.requires_grad for weight in module.backbone.adapter_weights("teacher").values()
    )
    merged = build(
        make(
            tiny_model_dir, TeacherModel(ModelSpec(name=str(tiny_model_dir), adapter=str(tmp_path)))
        )
    )
    assert_close(merged.loss(rollout).loss, first, **FP32_MODEL)
    with pytest.raises(ConfigurationError, match="trained in full"):
        build(make(tiny_model_dir, TeacherAdapter(str(tmp_path))))


def test_any_policy_can_be_held_to_a_teacher(tiny_model_dir: Path) -> None:
    spec, teacher = ModelSpec(name=str(tiny_model_dir)), TeacherModel(teacher_spec(tiny_model_dir))
    module = build(GRPOPolicyModule(spec, NoReward(), reference=teacher, sampling=SHORT))
    rollout, _ = module.collect(prompt_batch(tiny_model_dir))
    with torch.no_grad():
        rows = logits_of(module.reference.model.model, rollout)
    for n, logits in enumerate(rows):
        mask = rollout.response_mask[n]
        picks = rollout.completions.tokens[n][mask, None]
        expected = logits.log_softmax(-1).gather(-1, picks).squeeze(-1)
        assert_close(rollout.ref_logprobs[n][mask], expected.float(), **FP32_MODEL)


@pytest.mark.trl
@pytest.mark.parametrize("variable", ["LIT_RLHF_TRL", "LIT_RLHF_TRL_PPO"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_is_that_of_trl(tiny_model_dir: Path, beta: float, variable: str) -> None:
    """Of its own code, on the logits of whole padded rows."""
    theirs = _jsd_of_trl(Path(os.environ[variable]))
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 11, generator=draws, dtype=torch.float64)
    expected = theirs(*logits, beta=beta, temperature=0.7, reduction="none").sum(-1)
    assert_close(GeneralizedJSD(beta)(*(logits / 0.7)), expected, **FP64)

    module = build(make(tiny_model_dir, divergence=GeneralizedJSD(beta), num_samples=2))
    rollout = module.estimate(module.collect(prompt_batch(tiny_model_dir))[0])
    found = module.reduction(module.loss(rollout).loss, rollout.response_mask)
    rows = [
        logits_of(model, rollout) for model in (module.backbone.model, module.reference.model.model)
    ]
    width = max(map(len, rows[0]))
    student, teacher = (
        torch.stack([pad(row, (0, 0, 0, width - len(row))) for row in side]) * SHORT.temperature
        for side in rows
    )
    labels = rollout.completions.tokens[:, :width].masked_fill(
        ~rollout.response_mask[:, :width], -100
    )
    expected = theirs(student, teacher, labels=labels, beta=beta, temperature=SHORT.temperature)
    assert_close(found.double(), expected, **FP32)


def _jsd_of_trl(root: Path) -> Any:
    """The function as it stands there; read, for TRL isn't of this environment."""
    source = root / "trl" / "experimental" / "gkd" / "gkd_trainer.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    function = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "generalized_jsd_loss"
    )
    function.decorator_list = []
    space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module([function], []), str(source), "exec"), space)
    return space["generalized_jsd_loss"]


# -- which teachers ----------------------------------------------------------------------------------------------------


def test_rows_of_the_teachers_head_beyond_the_students_are_left_out(tiny_model_dir: Path) -> None:
    width = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config.vocab_size
    wide = build(
        make(tiny_model_dir, TeacherModel(teacher_spec(tiny_model_dir, vocab_size=width + 8)))
    )
    narrow = build(make(tiny_model_dir))
    theirs = wide.reference.model.model.state_dict()
    narrow.reference.model.model.load_state_dict(
        {k: v[:width] if v.shape[:1] == (width + 8,) else v for k, v in theirs.items()}
    )
    rollout = narrow.estimate(narrow.collect(prompt_batch(tiny_model_dir))[0])
    losses = [module.loss(rollout).loss for module in (wide, narrow)]
    assert_close(losses[0], losses[1], **FP32_MODEL)


def test_a_teacher_with_a_narrower_head_is_refused(tiny_model_dir: Path) -> None:
    width = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config.vocab_size
    padded, teacher = (
        teacher_spec(tiny_model_dir, vocab_size=width + 8),
        teacher_spec(tiny_model_dir),
    )
    module = DistillationPolicyModule(padded, teacher=TeacherModel(teacher))
    with pytest.raises(ConfigurationError, match=rf"{width} rows, fewer than .* {width + 8}"):
        build(module)


def test_a_teacher_with_another_vocabulary_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = words["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[10:12]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    spec = teacher_spec(tiny_model_dir)
    spec.tokenizer = str(tmp_path)
    with pytest.raises(
        ConfigurationError, match=r"another vocabulary.*is token \d+ of the student"
    ):
        build(make(tiny_model_dir, TeacherModel(spec)))


def test_a_teacher_is_not_trained(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"lora.*a teacher is frozen"):
        TeacherModel(ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2)))


def test_a_teacher_does_not_move(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"MovingReference.*TeacherModel, which stays"):
        fit(
            make(tiny_model_dir),
            tiny_model_dir,
            callbacks=[MovingReference(0.5, every_n_iterations=1)],
        )


def test_a_penalty_for_cut_completions_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing_eos_penalty"):
        make(tiny_model_dir, missing_eos_penalty=1.0)
