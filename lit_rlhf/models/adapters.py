"""LoRA adapters by role on one frozen base."""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners import lora
from peft.tuners.lora import LoraModel, bnb as lora_bnb
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.internals.peft import set_active
from lit_rlhf.models.kernels.lora import RoleLayer, adopt
from lit_rlhf.models.specs import Kernels, LoraSpec
from lit_rlhf.seeding import generator

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what peft writes before the path of each parameter
_TAKEN = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config", "fan_in_fan_out", "r", "lora_alpha"),
    *("lora_dropout", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights", "eva_config"),
    "modules_to_save",
}
"""Options of peft's LoRA that a role heeds, or that say nothing about numbers; any other that is used is refused."""
_KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to draw the first adapter that leave the base as it is; the others take a part of its weights away."""


class RoleAdapters:
    """The adapters of a decoder, one per role, of which one or none is on at a time.

    Switching sets the layers' state directly: peft's own `set_adapter` and `disable_adapter` also flip `requires_grad`,
    which must stay as it was when a strategy wrapped the model and an optimizer took its parameters.

    Args:
        model: The decoder; its linear layers are replaced in place by the first adapter.
        trunk_prefix: Path of the trunk within a causal language model of this kind, as in adapter files.
        trunk: The trunk.
        seed: Of the initial weights of adapters.
        kernels: "plain" leaves peft's layers as they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trunk: nn.Module,
        trunk_prefix: str,
        *,
        seed: int,
        kernels: Kernels,
    ) -> None:
        self.configs: dict[str, LoraConfig] = {}
        self._model = model
        self._trunk = trunk
        self._trunk_prefix = trunk_prefix
        self._seed = seed
        self._kernels = kernels
        kinds, modules = nn.Linear | Conv1D, trunk.named_modules()
        self._linear = {name: module for name, module in modules if isinstance(module, kinds)}
        self._tuner: Any = None
        self._layers: dict[str, Any] = {}  # adapted layers by their path in the trunk
        self._active: str | None = None

    @property
    def active(self) -> str | None:
        """The adapter that is on, or None."""
        return self._active

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Switch to an adapter, or to the base with None, and back at the end, whatever happens within."""
        before = self._active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def add(self, name: str, spec: LoraSpec, *, trainable: bool) -> None:
        """Add an adapter that starts as the identity: A drawn by seed and name, B zero."""
        config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]
            lora_dropout=spec.dropout,
            use_rslora=spec.rslora,
            target_modules=self._targets(spec.target_modules),
        )
        self._inject(name, config, trainable)
        random = generator(self._seed, "adapter", name)
        for weight in self.parameters(name, "lora_A").values():
            bound = weight.shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5), as peft draws it
            # Drawn in float32 whatever the default dtype: other dtypes draw other numbers of the same seed.
            draw = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
            weight.data.copy_(draw.uniform_(-bound, bound, generator=random))

    def copy(self, name: str, source: str, *, trainable: bool) -> None:
        """Add an adapter equal to another."""
        self._inject(name, copy.deepcopy(self.configs[source]), trainable)
        theirs = self.parameters(source)
        for key, weight in self.parameters(name).items():
            weight.data.copy_(theirs[key].data)

    def load(self, name: str, path: str, *, trainable: bool) -> dict[str, Tensor]:
        """Add an adapter from a directory that peft or this library wrote.

        Returns:
            Tensors of the file that belong to no adapter: a scalar head, as `score.weight`.

        Raises:
            CheckpointError: Files are missing or torn, hold another kind of adapter or one of another base.
        """
        config, state = read_adapter(path)
        weights, extra = self._sort_keys(state)
        paths = {key.rsplit(".", 2)[0] for key in weights}
        self._check_shapes(weights, path)
        config.target_modules = self._condense(paths)
        # The paths of its weights say which layers it has; patterns are of names in a causal language model.
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        config.rank_pattern = self._by_path(config.rank_pattern, paths)
        config.alpha_pattern = self._by_path(config.alpha_pattern, paths)
        self._inject(name, config, trainable)
        ours = self.parameters(name)
        missing, unexpected = sorted(set(ours) - set(weights)), sorted(set(weights) - set(ours))
        wrong = [key for key in ours if key in weights and ours[key].shape != weights[key].shape]
        if missing or unexpected or wrong:
            raise CheckpointError(
                f"The adapter {path!r} doesn't fit: missing {missing[:3]}, unexpected {unexpected[:3]}, of another "
                f"shape {wrong[:3]} (first three each). Was it trained on another base, or is the file incomplete?"
            )
        for key, weight in ours.items():
            weight.data.copy_(weights[key])
        return extra

    def save(
        self, name: str, path: Path, *, base: str | None, task: str, head: Tensor | None = None
    ) -> None:
        """Write an adapter as peft does.

        Args:
            name: The adapter.
            path: An existing directory.
            base: Name or path of the base, for peft to find it.
            task: peft's task type, "CAUSAL_LM" or "SEQ_CLS".
            head: (1, h) weight of a scalar head to store beside it.
        """
        prefix = f"{_PREFIX}{self._trunk_prefix}."
        weights = self.parameters(name)
        state = {f"{prefix}{key}": weight.detach().cpu() for key, weight in weights.items()}
        config = copy.deepcopy(self.configs[name])
        config.task_type, config.base_model_name_or_path, config.inference_mode = task, base, True
        if head is not None:
            state[f"{_PREFIX}score.weight"] = head.detach().cpu()
            config.modules_to_save = ["score"]
        tensors = {key: value.contiguous() for key, value in state.items()}
        save_file(tensors, path / ADAPTER_WEIGHTS, {"format": "pt"})
        config.save_pretrained(str(path))

    def parameters(self, name: str, part: str = "lora_") -> dict[str, nn.Parameter]:
        """An adapter's weights by their path in the trunk, without the adapter's name."""
        found = {}
        for path, layer in self._layers.items():
            for matrix in ("lora_A", "lora_B"):
                modules = getattr(layer, matrix)
                if matrix.startswith(part) and name in modules:
                    found[f"{path}.{matrix}.weight"] = modules[name].weight
        return found

    def layers(self, name: str) -> Mapping[str, Any]:
        """The layers an adapter changes, by their path in the trunk."""
        return {path: layer for path, layer in self._layers.items() if name in layer.scaling}

    def _switch(self, name: str | None) -> None:
        if name == self._active:
            return
        for layer in self._layers.values():
            set_active(layer, name)
            if isinstance(layer, RoleLayer):
                layer.casts.clear()
        self._active = name

    def _inject(self, name: str, config: LoraConfig, trainable: bool) -> None:
        if name in self.configs:
            raise ConfigurationError(f"There is an adapter for the role {name!r} already.")
        flags = {id(p): p.requires_grad for p in self._model.parameters()}
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in self._linear.values())
        if self._tuner is None:
            self._tuner = LoraModel(self._model, config, adapter_name=name)
        else:
            self._tuner.peft_config[name] = config
            self._tuner.inject_adapter(self._model, name)
        self.configs[name] = config
        found = {path: self._trunk.get_submodule(path) for path in self._linear}
        self._layers = {path: layer for path, layer in found.items() if hasattr(layer, "lora_A")}
        for path, layer in self._layers.items():
            if not isinstance(layer, lora.Linear | lora_bnb.Linear4bit | lora_bnb.Linear8bitLt):
                raise ConfigurationError(
                    f"lora.target_modules matches {path!r}, which is no linear layer ({type(layer).__name__} in peft). "
                    "Name linear layers of the decoder, or use 'all-linear'."
                )
            if self._kernels == "auto":
                adopt(layer)
        for parameter in self._model.parameters():
            parameter.requires_grad_(flags.get(id(parameter), trainable))
        for weight in self.parameters(name).values():
            weight.data = weight.data.float()
        self._active = name  # whatever peft has switched on: the next line reaches every layer
        self._switch(None)

    def _targets(self, wanted: str | list[str]) -> list[str]:
        if wanted == "all-linear":
            return self._condense(set(self._linear))
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        for name in names:
            if not any(path == name or path.endswith(f".{name}") for path in self._linear):
                known = sorted({path.rsplit(".", 1)[-1] for path in self._linear})
                raise ConfigurationError(
                    f"lora.target_modules: {name!r} names no linear layer of the decoder; there are {known}, or "
                    "'all-linear'."
                )
        return names

    def _condense(self, paths: set[str]) -> list[str]:
        # Last parts of the paths where they mean the same layers: what people write and peft's files hold.
        leaves = {path.rsplit(".", 1)[-1] for path in paths}
        named = [name for name, _ in self._model.named_modules() if ".lora_" not in name]
        everything = [name for name in named if ".base_layer" not in name]
        matched = {name for name in everything if name.rsplit(".", 1)[-1] in leaves}
        full = {f"{self._model_prefix}{path}" for path in paths}
        return sorted(leaves) if matched == full else sorted(full)

    def _by_path(self, pattern: Mapping[str, Any] | None, paths: set[str]) -> dict[str, Any]:
        """A pattern of peft, whose keys match ends of a layer's name, by the whole names of the layers here."""
        found = {}
        for path in paths:
            full = f"{self._trunk_prefix}.{path}"
            for key, value in (pattern or {}).items():
                if re.match(rf"(.*\.)?({key})$", full):
                    found[re.escape(f"{self._model_prefix}{path}")] = value
                    break
        return found

    @property
    def _model_prefix(self) -> str:
        return "" if self._trunk is self._model else f"{self._trunk_prefix}."

    def _sort_keys(
        self, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights, extra = {}, {}
        for key, value in state.items():
            bare = key.removeprefix(_PREFIX)
            if ".lora_A." in bare or ".lora_B." in bare:
                weights[bare.removeprefix(f"{self._trunk_prefix}.")] = value
            else:
                extra[bare.replace(".modules_to_save", "")] = value
        return weights, extra

    def _check_shapes(self, weights: Mapping[str, Tensor], path: str) -> None:
        unknown = sorted({key.rsplit(".", 2)[0] for key in weights} - set(self._linear))
        if unknown or not weights:
            raise CheckpointError(
                f"The adapter {path!r} changes layers that the base doesn't have: {unknown[:3]} ({len(unknown)} of "
                "them). It belongs to another base model; load that one."
            )
        for key, value in weights.items():
            layer, matrix, _ = key.rsplit(".", 2)
            fan_in, fan_out = _features(self._linear[layer])
            ours, theirs = (
                (fan_in, value.shape[1]) if matrix == "lora_A" else (fan_out, value.shape[0])
            )
            if ours != theirs:
                raise CheckpointError(
                    f"The adapter {path!r} is of another base: {key} fits a layer of width {theirs}, ours has {ours}."
                )


def read_adapter(path: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read the files of an adapter directory.

    Raises:
        CheckpointError: A file is missing or torn, or the adapter is of a kind that isn't supported.
    """
    directory = Path(path)
    for file in ("adapter_config.json", ADAPTER_WEIGHTS):
        if not (directory / file).is_file():
            found: object = "no such directory"
            if directory.is_dir():
                found = sorted(item.name for item in directory.iterdir())[:12]
            raise CheckpointError(f"The adapter {path!r} has no file {file} (found: {found}).")
    try:
        config = PeftConfig.from_pretrained(path)
        state = load_file(directory / ADAPTER_WEIGHTS)
    except Exception as error:  # safetensors and json raise errors of several kinds for torn files
        raise CheckpointError(
            f"The adapter {path!r} can't be read, its files may be torn: {error}"
        ) from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(
            f"The adapter {path!r} is of the kind {config.peft_type}; only LoRA is supported."
        )
    # peft's names for the head of a classifier
    if set(config.modules_to_save or []) <= {"score", "classifier"}:
        config.modules_to_save = None
    defaults = LoraConfig()
    used = [
        item.name
        for item in fields(config)
        if item.name not in _TAKEN
        and getattr(config, item.name) != getattr(defaults, item.name, None)
    ]
    if config.modules_to_save:
        used.append("modules_to_save")
    if used:
        raise CheckpointError(
            f"The adapter {path!r} uses {used} of peft, which roles don't support. Merge it into its base first: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(directory), and set name to "
            "that directory."
        )
    if config.init_lora_weights not in _KEEPS_BASE:
        raise CheckpointError(
            f"The adapter {path!r} was started with init_lora_weights={config.init_lora_weights!r}, which changes the "
            "base's weights too, so it means something else on the base as it was. Convert it as it is saved by peft "
            "(save_pretrained(..., path_initial_model_for_weight_conversion=...)), or merge it: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(directory), and set name to "
            "that directory."
        )
    config.inference_mode, config.init_lora_weights, config.task_type = False, True, None
    return config, state


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
