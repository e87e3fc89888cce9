import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.errors import CheckpointError, ConfigurationError, DataError
from lit_rlhf.models import (
    Backbone,
    LoraSpec,
    ModelSpec,
    ValueAdapter,
    ValueModel,
    export_policy,
    export_reward,
)
from lit_rlhf.models.cards import RECORD
from lit_rlhf.modules import PPOPolicyModule, RewardModelModule
from lit_rlhf.rewards import LengthReward, ModelReward
from lit_rlhf.rewards.retokenize import same_ids
from lit_rlhf.types import Completions
from tests.reference.completions import make_completions
from tests.tolerances import FP32_MODEL

PROMPTS = ["how was it? ", "the other film, then: "]
RESPONSES = ["good", "the best in years", "bad, the actors were thin", "", "in there", "so so"]
FINISHED = [True, True, False, True, False, True]


def train(backbone: Backbone) -> Backbone:
    """Give adapters and head weights that a training could have left."""
    random = torch.Generator().manual_seed(5)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name or name.startswith("heads."):
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.5)
    return backbone


@pytest.fixture(scope="module")
def whole_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_whole(tiny_model_dir, tmp_path_factory.mktemp("whole") / "reward")


def export_whole(model: Path, path: Path) -> Path:
    backbone = Backbone.load(ModelSpec(name=str(model)), lm_head=False)
    backbone.add_head("reward")
    export_reward(train(backbone), path, merge=True, score_mean=0.25, score_std=2.0)
    return path


@pytest.fixture(scope="module")
def adapter_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = Backbone.load(
        ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4)), lm_head=False
    )
    backbone.add_adapter("reward")
    backbone.add_head("reward")
    path = tmp_path_factory.mktemp("adapter") / "reward"
    export_reward(train(backbone), path, merge=False, score_mean=0.25, score_std=2.0)
    return path


def write_checkpoint(module: RewardModelModule | PPOPolicyModule, path: Path) -> Path:
    module.configure_model()
    train(module.backbone)
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
    }
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=4))
    return write_checkpoint(
        RewardModelModule(spec), tmp_path_factory.mktemp("checkpoint") / "reward.ckpt"
    )


def policy(model: Path, lora: bool = True) -> Backbone:
    backbone = Backbone.load(ModelSpec(name=str(model), lora=LoraSpec(rank=2) if lora else None))
    if lora:
        backbone.add_adapter("policy")
    return backbone


def completions(backbone: Backbone, **columns: list[Any]) -> Completions:
    return make_completions(backbone.tokenizer, PROMPTS, RESPONSES, FINISHED, **columns)


def classifier_scores(path: Path, texts: Sequence[tuple[str, str, bool]]) -> Tensor:
    """What transformers says of each text alone, written with the classifier's own tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    found = []
    for prompt, response, finished in texts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = ids + tokenizer(response, add_special_tokens=False)["input_ids"]
        ids = ids + ([tokenizer.eos_token_id] if finished else [])
        with torch.no_grad():
            found.append(float(model(input_ids=torch.tensor([ids])).logits))
    return torch.tensor(found)


def texts() -> list[tuple[str, str, bool]]:
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    return list(zip(prompts, RESPONSES, FINISHED, strict=True))


def attached(path: Path | str, backbone: Backbone, **options: Any) -> ModelReward:
    reward = ModelReward(str(path), **options)
    reward.attach(backbone)
    return reward


# -- scores
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_scores_of_an_export_equal_those_of_transformers(
    tiny_model_dir: Path, whole_dir: Path, batch_tokens: int
) -> None:
    backbone = policy(tiny_model_dir)
    found = (
        attached(whole_dir, backbone, batch_tokens=batch_tokens).score(completions(backbone)).total
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, classifier_scores(whole_dir, texts()), **FP32_MODEL)


def test_scores_do_not_depend_on_the_order_of_prompts(
    tiny_model_dir: Path, whole_dir: Path
) -> None:
    backbone = policy(tiny_model_dir)
    reward = attached(whole_dir, backbone, batch_tokens=60)
    swapped = make_completions(
        backbone.tokenizer,
        PROMPTS[::-1],
        RESPONSES[3:] + RESPONSES[:3],
        FINISHED[3:] + FINISHED[:3],
    )
    wanted = reward.score(completions(backbone)).total.view(2, 3).flip(0).flatten()
    torch.testing.assert_close(reward.score(swapped).total, wanted, **FP32_MODEL)


def test_an_adapter_on_the_policys_base_scores_as_a_model_of_its_own(
    tiny_model_dir: Path, adapter_dir: Path, checkpoint: Path
) -> None:
    for path in (adapter_dir, checkpoint):
        own_policy, shared_policy = policy(tiny_model_dir), policy(tiny_model_dir)
        own = attached(path, own_policy, share_base=False)
        shared = attached(path, shared_policy, share_base=True)
        wanted = own.score(completions(own_policy)).total
        assert wanted.std() > 0.1
        torch.testing.assert_close(
            shared.score(completions(shared_policy)).total, wanted, **FP32_MODEL
        )
        assert own_policy.adapters == ("policy",)
        assert shared_policy.adapters == ("policy", "reward")
        assert sum(parameter.numel() for parameter in own.parameters()) > 10_000
        assert not list(shared.parameters())
        assert not any(
            p.requires_grad for name, p in shared_policy.named_parameters() if ".reward." in name
        )


def test_an_adapter_is_put_on_the_policys_base_by_default_where_it_fits(
    tiny_model_dir: Path, adapter_dir: Path, whole_dir: Path
) -> None:
    fits, full, whole = (
        policy(tiny_model_dir),
        policy(tiny_model_dir, lora=False),
        policy(tiny_model_dir),
    )
    attached(adapter_dir, fits)
    attached(adapter_dir, full)
    attached(whole_dir, whole)
    assert (fits.adapters, full.adapters, whole.adapters) == (("policy", "reward"), (), ("policy",))


def test_a_checkpoint_of_a_model_trained_in_full_scores_as_the_module(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = RewardModelModule(ModelSpec(name=str(tiny_model_dir)))
    path = write_checkpoint(module, tmp_path / "full.ckpt")
    export_reward(module.backbone, tmp_path / "export", merge=True)
    backbone = policy(tiny_model_dir)
    found = attached(path, backbone).score(completions(backbone)).total
    torch.testing.assert_close(found, classifier_scores(tmp_path / "export", texts()), **FP32_MODEL)


def test_two_rewards_on_one_base_have_roles_of_their_own(
    tiny_model_dir: Path, adapter_dir: Path, checkpoint: Path
) -> None:
    backbone = policy(tiny_model_dir)
    checkpoint_backbone = policy(tiny_model_dir)
    first, second = attached(adapter_dir, backbone), attached(checkpoint, backbone)
    assert backbone.adapters == ("policy", "reward", "reward_2")
    alone = attached(checkpoint, checkpoint_backbone).score(completions(checkpoint_backbone)).total
    torch.testing.assert_close(second.score(completions(backbone)).total, alone, **FP32_MODEL)
    first.attach(backbone)  # idempotent
    assert backbone.adapters == ("policy", "reward", "reward_2")


def test_normalisation_uses_the_recorded_moments_and_is_off_unless_asked_for(
    tiny_model_dir: Path, adapter_dir: Path, whole_dir: Path
) -> None:
    for path in (adapter_dir, whole_dir):
        backbone, other = policy(tiny_model_dir), policy(tiny_model_dir)
        plain = attached(path, backbone).score(completions(backbone)).total
        normal = attached(path, other, normalize=True).score(completions(other)).total
        torch.testing.assert_close(normal, (plain - 0.25) / 2.0, **FP32_MODEL)


@pytest.mark.parametrize("kind", ["adapter_dir", "whole_dir"])
def test_normalisation_by_nothing_is_refused(
    kind: str, tiny_model_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Trained without validation: the scores would be what they are, whatever the option says."""
    path = tmp_path / "unvalidated"
    shutil.copytree(request.getfixturevalue(kind), path)
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps({**record, "score_mean": 0.0, "score_std": 1.0}))
    with pytest.raises(ConfigurationError, match=r"normalize.*unvalidated.*NormalizedReward"):
        attached(path, policy(tiny_model_dir), normalize=True)


def test_scoring_leaves_flags_and_records_no_gradient(
    tiny_model_dir: Path, adapter_dir: Path
) -> None:
    backbone = policy(tiny_model_dir)
    backbone.train()
    reward = attached(adapter_dir, backbone)
    found = reward.score(completions(backbone)).total
    assert not found.requires_grad
    assert backbone.training
    assert all(p.requires_grad for name, p in backbone.named_parameters() if ".policy." in name)


# -- a critic's start
# -----------------------------------------------------------------------------------------------------


def test_a_critic_starts_from_it(tiny_model_dir: Path, adapter_dir: Path, whole_dir: Path) -> None:
    backbone = policy(tiny_model_dir)
    reward = attached(adapter_dir, backbone)
    ValueAdapter(start="reward").attach(backbone, reward.source())
    assert torch.equal(backbone.heads["value"].weight, backbone.heads["reward"].weight)
    other = policy(tiny_model_dir)
    own = attached(whole_dir, other)
    critic = ValueModel(start="reward")
    critic.attach(other, own.source())
    assert torch.equal(critic.backbone.heads["value"].weight, own.backbone.heads["reward"].weight)


def test_before_it_is_attached_there_is_no_source_and_no_score(
    tiny_model_dir: Path, whole_dir: Path
) -> None:
    reward = ModelReward(str(whole_dir))
    assert reward.source() is None
    assert LengthReward().source() is None
    with pytest.raises(ConfigurationError, match=r"call attach\(backbone\)"):
        reward.score(completions(policy(tiny_model_dir)))


# -- other tokenizers
# -----------------------------------------------------------------------------------------------------


def test_another_tokenizer_reads_the_text_never_the_ids(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, tmp_path: Path
) -> None:
    path = export_whole(other_tokenizer_model_dir, tmp_path / "other")
    backbone = policy(tiny_model_dir)
    found = attached(path, backbone).score(completions(backbone)).total
    wanted = [(prompt, response, finished) for prompt, response, finished in texts()]
    torch.testing.assert_close(found, classifier_scores(path, wanted), **FP32_MODEL)


def test_another_tokenizer_renders_messages_with_its_own_template(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, tmp_path: Path
) -> None:
    path = export_whole(other_tokenizer_model_dir, tmp_path / "other")
    backbone = policy(tiny_model_dir)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS for _ in range(3)]
    rendered = [f"<|user|>{prompt}<|assistant|>" for prompt in PROMPTS]
    chat = make_completions(backbone.tokenizer, rendered, RESPONSES, FINISHED, messages=messages)
    found = attached(path, backbone, conversation_column="messages").score(chat).total
    wanted = [
        (f"<|user|>{prompt}<|assistant|>", response, finished)
        for prompt, response, finished in texts()
    ]
    torch.testing.assert_close(found, classifier_scores(path, wanted), **FP32_MODEL)
    with pytest.raises(
        ConfigurationError, match=r"Prompt 0 holds .*<\|assistant\|>.*conversation_column"
    ):
        attached(path, backbone).score(chat)
    with pytest.raises(DataError, match="reads the column 'talk'"):
        attached(path, backbone, conversation_column="talk").score(chat)


def test_the_same_tokens_with_another_template(
    tiny_model_dir: Path, whole_dir: Path, adapter_dir: Path
) -> None:
    """Messages are rendered by the reward model's template also where the tokenizers agree."""
    backbone = policy(tiny_model_dir)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS for _ in range(3)]
    chat = make_completions(backbone.tokenizer, PROMPTS, RESPONSES, FINISHED, messages=messages)
    found = attached(whole_dir, backbone, conversation_column="messages").score(chat).total
    wanted = [
        (f"<|user|>{prompt}<|assistant|>", response, finished)
        for prompt, response, finished in texts()
    ]
    torch.testing.assert_close(found, classifier_scores(whole_dir, wanted), **FP32_MODEL)
    with pytest.raises(ConfigurationError, match=r"stands on .* Leave it out, or set share_base"):
        attached(adapter_dir, backbone, conversation_column="messages")


def test_a_pad_token_of_its_own_does_not_make_a_tokenizer_foreign(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    ours = AutoTokenizer.from_pretrained(tiny_model_dir)
    ours.pad_token = ours.eos_token
    theirs = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert same_ids(ours, theirs)
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    assert same_ids(ours, theirs)
    theirs.eos_token = "<bos>"
    assert not same_ids(ours, theirs)


def test_the_other_tokenizer_is_foreign(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path
) -> None:
    tokenizers = [
        AutoTokenizer.from_pretrained(path) for path in (tiny_model_dir, other_tokenizer_model_dir)
    ]
    assert not same_ids(*tokenizers)


# -- what is refused
# ------------------------------------------------------------------------------------------------------


def test_what_cannot_stand_on_the_policys_base_is_refused_with_the_reason(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, adapter_dir: Path, whole_dir: Path
) -> None:
    cases = [
        (whole_dir, policy(tiny_model_dir), "it is a whole model, not an adapter"),
        (adapter_dir, policy(tiny_model_dir, lora=False), "the policy trains its base in full"),
        (
            adapter_dir,
            policy(other_tokenizer_model_dir),
            f"it was trained on {tiny_model_dir}, and the policy's base is",
        ),
    ]
    for path, backbone, message in cases:
        with pytest.raises(ConfigurationError, match=f"{message}.*Set share_base: false"):
            attached(path, backbone, share_base=True)


def test_paths_that_hold_no_reward_model_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    backbone = policy(tiny_model_dir)
    with pytest.raises(ConfigurationError, match="doesn't exist"):
        attached(tmp_path / "nowhere", backbone)
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        attached(tmp_path / "nowhere.ckpt", backbone)
    (tmp_path / "torn.ckpt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="torn"):
        attached(tmp_path / "torn.ckpt", backbone)
    with pytest.raises(ConfigurationError, match="no reward model"):
        attached(tiny_model_dir, backbone)
    export_policy(backbone, tmp_path / "policy", merge=False)
    with pytest.raises(CheckpointError, match="no scalar head"):
        attached(tmp_path / "policy", backbone)


def test_a_checkpoint_of_a_policy_is_no_reward_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = PPOPolicyModule(
        ModelSpec(name=str(tiny_model_dir), lora=LoraSpec(rank=2)), reward=LengthReward()
    )
    path = write_checkpoint(module, tmp_path / "policy.ckpt")
    with pytest.raises(CheckpointError, match="of a PPOPolicyModule holds no reward model"):
        attached(path, policy(tiny_model_dir))


def test_an_incomplete_checkpoint_is_refused(
    tiny_model_dir: Path, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    dropped = next(key for key in content["state_dict"] if "lora_B" in key)
    del content["state_dict"][dropped]
    torch.save(content, tmp_path / "part.ckpt")
    for share in (True, False):
        with pytest.raises(CheckpointError, match="doesn't fit"):
            attached(tmp_path / "part.ckpt", policy(tiny_model_dir), share_base=share)


def test_texts_longer_than_the_reward_models_context_are_refused(
    tiny_model_dir: Path, whole_dir: Path
) -> None:
    backbone = policy(tiny_model_dir)
    long = make_completions(backbone.tokenizer, ["x"], ["y" * 600])
    with pytest.raises(ConfigurationError, match=r"has 602 tokens; the reward model .* reads 512"):
        attached(whole_dir, backbone).score(long)


def test_a_completion_without_tokens_is_refused(tiny_model_dir: Path, whole_dir: Path) -> None:
    backbone = policy(tiny_model_dir)
    empty = make_completions(backbone.tokenizer, ["x"], ["y", ""], [True, False])
    with pytest.raises(DataError, match="Completion 1 of the batch has no tokens"):
        attached(whole_dir, backbone).score(empty)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="batch_tokens=0"):
        ModelReward("somewhere", batch_tokens=0)
