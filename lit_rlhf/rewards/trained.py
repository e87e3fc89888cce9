"""What kind of trained reward model lies at a path, and how it gets onto a backbone."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import Backbone, load_checkpoint_backbone, load_reward_model, read_checkpoint
from lit_rlhf.models.adapters import ADAPTER_WEIGHTS, read_adapter
from lit_rlhf.models.cards import read_record, recorded_prompts
from lit_rlhf.models.checkpoints import spec_fields
from lit_rlhf.models.export import place_of
from lit_rlhf.prompt_form import PromptForm
from lit_rlhf.rewards.retokenize import same_ids
from lit_rlhf.tokenizers import load_tokenizer
from lit_rlhf.types import GATE

_ADAPTER_KEY = ".lora_A.reward.weight"
_PREFIX, _HEADS = "backbone.model.", "backbone.heads."
_INITIAL = ("config", "init_seed", "tokenizer")
"""What tells one random initialisation from another."""


@dataclass(frozen=True)
class TrainedReward:
    """A reward model that hasn't been loaded yet.

    Attributes:
        path: Where it lies.
        base: Name of the base of an adapter, as the user or the adapter tells it.
        checkpoint: The content of a `.ckpt` file; None for directories and hub ids.
        is_adapter: Whether it is an adapter, not a whole model.
        heads: Names of its heads; several of an ensemble that shares its model, whose mean is the reward.
    """

    path: str
    base: str | None
    checkpoint: Mapping[str, Any] | None
    is_adapter: bool
    heads: tuple[str, ...] = ("reward",)

    @classmethod
    def read(cls, path: str, base: str | None, *, ensemble: bool = False) -> "TrainedReward":
        """Look at a path.

        Args:
            path: An export, a checkpoint, or a classifier's directory or hub id.
            base: Base of an adapter, if it is no longer where the adapter says.
            ensemble: Take the heads of a checkpoint with several members too; exports hold their mean.

        Raises:
            CheckpointError: A checkpoint that is torn, or not of a reward model; an adapter without one of its files.
            ConfigurationError: There is nothing of that name.
        """
        if path.endswith(".ckpt") or Path(path).is_file():
            checkpoint = read_checkpoint(path)
            own = [key for key in checkpoint["state_dict"] if key.startswith(_HEADS)]
            found = [key.removeprefix(_HEADS).removesuffix(".weight") for key in own]
            members = [name for name in found if name.startswith("member_")] if ensemble else []
            one = "reward" in found
            made = "reward_parts" in checkpoint["lit_rlhf"]["state"]  # of several heads
            gated = any(name.startswith(GATE) for name in found)
            heads = tuple(members) or (("reward",) if one or made or gated else ())
            if not heads:
                raise CheckpointError(
                    f"The checkpoint {path!r} of a {checkpoint['lit_rlhf'].get('class')} holds no reward model (no "
                    "head 'reward'). Give one of RewardModelModule."
                )
            adapted = any(key.endswith(_ADAPTER_KEY) for key in checkpoint["state_dict"])
            is_adapter = adapted and one  # an adapter of peft's has one head
            named = base or spec_fields(checkpoint, path).get("name")
            return cls(path, named, checkpoint, is_adapter, heads)
        config = Path(path) / "adapter_config.json"
        if not config.is_file():
            form = read_record(Path(path)).get("form")
            if (Path(path) / ADAPTER_WEIGHTS).is_file() or form == "adapter":
                read_adapter(path)  # says what is missing
            return cls(path, None, None, is_adapter=False)
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return cls(path, base or named, None, is_adapter=True)

    def obstacle(self, policy: Backbone) -> str | None:
        """Why it can't be put on the policy's base; None if it can."""
        if not self.is_adapter:
            return "it is a whole model, not an adapter"
        if not policy.has_lora:
            return "the policy trains its base in full (backbone.lora is not set)"
        spec = None if self.checkpoint is None else spec_fields(self.checkpoint, self.path)
        ours, theirs = policy.spec.name, self.base
        if ours is None and theirs is None:
            initial = [(vars(policy.spec)[name], (spec or {}).get(name)) for name in _INITIAL]
            same = all(mine == other for mine, other in initial)
        else:
            same = None not in (ours, theirs) and place_of(ours) == place_of(theirs)
        if not same:
            ours, theirs = (name or "a random initialisation" for name in (ours, theirs))
            return f"it was trained on {theirs}, and the policy's base is {ours}"
        where = self.path if spec is None else str(spec.get("tokenizer") or self.base)
        if not same_ids(policy.tokenizer, load_tokenizer(where)):
            return "its tokenizer isn't the policy's"
        return None

    def add_to(self, policy: Backbone, role: str) -> None:
        """Put adapter and head on the policy's backbone.

        Raises:
            CheckpointError: The adapter doesn't fit.
        """
        if self.checkpoint is None:
            policy.add_adapter(role, path=self.path, trainable=False)
        else:
            with tempfile.TemporaryDirectory() as directory:
                self._write_adapter(self.checkpoint, Path(directory))
                policy.add_adapter(role, path=directory, trainable=False)
        if role not in policy.heads:
            raise CheckpointError(
                f"The adapter {self.path!r} has no scalar head (score.weight): it is no reward model."
            )

    def load(self, options: Mapping[str, Any]) -> Backbone:
        """Load it as a model of its own."""
        if self.checkpoint is None:
            base = self.base if self.is_adapter else None
            return load_reward_model(self.path, base=base, **options)
        overrides = {"name": self.base} if self.base is not None else {}
        return load_checkpoint_backbone(self.path, **overrides, **options)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of its scores on held-out data; 0 and 1 where they weren't recorded."""
        checkpoint = self.checkpoint
        record = checkpoint["lit_rlhf"]["state"] if checkpoint else read_record(Path(self.path))
        return float(str(record.get("score_mean", 0.0))), float(str(record.get("score_std", 1.0)))

    def fitted_pairs(self) -> str:
        """Which pairs the temperature of an export was fitted on; "" where there is none."""
        return "" if self.checkpoint else str(read_record(Path(self.path)).get("fitted_pairs", ""))

    def prompts(self) -> PromptForm | None:
        """How the prompts that it was trained on were written, where that is known."""
        if self.checkpoint is not None:
            return recorded_prompts(self.checkpoint["lit_rlhf"])
        return recorded_prompts(read_record(Path(self.path)))

    def _write_adapter(self, checkpoint: Mapping[str, Any], directory: Path) -> None:
        # In peft's layout, which is what backbones read; no second base is loaded for it.
        state: dict[str, Tensor] = checkpoint["state_dict"]
        mine = [key for key in state if key.startswith(_PREFIX) and ".reward.weight" in key]
        tensors = {
            key.removeprefix(_PREFIX).replace(".reward.weight", ".weight"): state[key]
            for key in mine
        }
        tensors["score.weight"] = state["backbone.heads.reward.weight"].reshape(1, -1)
        tensors = {f"base_model.model.{key}": x.contiguous() for key, x in tensors.items()}
        save_file(tensors, directory / ADAPTER_WEIGHTS)
        spec = spec_fields(checkpoint, self.path)
        if spec.get("adapter"):
            config, _ = read_adapter(str(spec["adapter"]))
        else:
            lora = spec["lora"]
            config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], use_rslora=lora["rslora"])
        config.save_pretrained(str(directory))
