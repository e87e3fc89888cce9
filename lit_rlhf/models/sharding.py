"""FSDP2: parameters divided over processes, and whole for the time of a pass or of a rollout."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from lit_rlhf.distributed import stack_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models.backbone import Backbone

Part = TypeVar("Part")
_WHOLE: "WeakSet[FSDPModule]" = WeakSet()
"""Parts whose parameters are gathered now."""


def shard(backbone: Backbone, mesh: DeviceMesh, name: str = "backbone") -> None:
    """Divide a backbone's parameters over the processes of a one-dimensional mesh, layer by layer.

    A pass gathers a layer when it comes to it, embeddings and head for all its time. All processes then must make as
    many passes (`in_step`). Without gradient it leaves nothing whole, but embeddings and head where it is asked for
    `hidden` states, from which logits are made later.

    Args:
        backbone: Whose parameters.
        mesh: The processes.
        name: What refusals call it: its place in the module.

    Raises:
        ConfigurationError: The base is quantized: bitsandbytes' packed weights can't be divided by row. Or weights of
            two dtypes are trained.
    """
    if backbone.spec.quantization != "none":
        raise ConfigurationError(
            f"{name} with quantization={backbone.spec.quantization!r} can't be sharded by ModelParallelStrategy: its "
            "packed weights can't be divided by row. Use ddp (each process holds the small quantized base), or "
            "quantization: none."
        )
    _refuse_two_dtypes(backbone, name)
    for layer in _layers(backbone.decoder):
        fully_shard(layer, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    # FSDP2 settles who is the root at the first call that goes through its hooks; unsharding a layer before would make
    # that layer a root of its own.
    backbone.become_root = lambda: None  # type: ignore[assignment]
    register_fsdp_forward_method(backbone, "become_root")

    def divide_again(root: nn.Module, _: object, options: Mapping[str, Any], __: object) -> None:
        # FSDP2 leaves what a root holds itself whole for a backward, and here there is none. A step would make it
        # stale.
        if not torch.is_grad_enabled() and not options.get("hidden"):
            for part in _divided(root, layers=False):
                part.reshard()

    backbone.register_forward_hook(divide_again, with_kwargs=True)


def _refuse_two_dtypes(backbone: Backbone, name: str) -> None:
    trained = [(key, each) for key, each in backbone.named_parameters() if each.requires_grad]
    dtypes = {str(weight.dtype).removeprefix("torch."): key for key, weight in reversed(trained)}
    if len(dtypes) > 1:
        examples = " and ".join(f"{key} is {dtype}" for dtype, key in dtypes.items())
        raise ConfigurationError(
            f"{name} can't be sharded by ModelParallelStrategy with weights of {len(dtypes)} dtypes to be trained: "
            f"{examples}. Gradients that are summed together have one. Set its dtype: float32, and trainer.precision: "
            "bf16-mixed for products in bfloat16; or use lora, whose weights are float32."
        )


def in_step(module: nn.Module, parts: Sequence[Part]) -> list[Part]:
    """What to pass through a module one after another: where it is sharded, as many parts on each process.

    All processes must call it. One with fewer than another has its last part again, whose result is to be left out.

    Args:
        module: Gathers parameters at each pass.
        parts: Of this process, one or more.
    """
    missing = agreed(module, len(parts)) - len(parts)
    return [*parts, *[parts[-1]] * missing]


def agreed(module: nn.Module, number: int) -> int:
    """The largest number of all processes where passes through a module wait for one another, else this one's."""
    if not _divided(module):
        return number
    device = next(module.parameters()).device
    return int(stack_over_ranks(torch.tensor(int(number), device=device)).amax())


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters within a module are divided over processes, be they whole for the moment or not."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


@contextmanager
def gathered(module: nn.Module, *, layers: bool = True) -> Iterator[None]:
    """Whole parameters on each process for the time of a `with`: for passes without gradient, without collectives.

    Processes may then run different numbers of passes, as generation by steps needs. Acts on all sharded backbones
    within a module, and does nothing where there are none; within another of the same, nothing, so that one process
    alone may call what does so itself.

    Args:
        module: A module with backbones, or a layer of one that has been gathered without its layers.
        layers: False leaves a backbone's layers as they are: what stands beside them is whole, embeddings and head.
    """
    sharded = _divided(module, layers=layers)
    for part in sharded:
        # Backbones have it once they are sharded; mypy holds a class of both kinds for impossible.
        if (become_root := getattr(part, "become_root", None)) is not None:
            become_root()
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    _WHOLE.update(sharded)
    try:
        yield
    finally:
        for part in sharded:
            _WHOLE.discard(part)
            part.reshard()
            # As FSDP2 has it: what a root holds itself, the LM head above all, stays whole from forward to backward.
            part.set_reshard_after_forward(not _is_root(part), recurse=False)


def divide(module: nn.Module) -> None:
    """Divide what a forward without a backward left whole: changes of whole parameters are lost when that is done."""
    for part in _divided(module):
        part.reshard()


def _divided(module: nn.Module, *, layers: bool = True) -> list[FSDPModule]:
    """Parts of a module that FSDP2 divides, apart from those that are gathered now."""
    return [
        part
        for part in module.modules()
        if isinstance(part, FSDPModule) and part not in _WHOLE and (layers or _is_root(part))
    ]


def _is_root(part: FSDPModule) -> bool:
    return hasattr(part, "become_root")  # as backbones have once they are sharded


def _layers(decoder: nn.Module) -> Iterator[nn.Module]:
    lists = [part for part in decoder.children() if isinstance(part, nn.ModuleList)]
    if not lists:
        raise ConfigurationError(
            f"{type(decoder).__name__} has no list of layers to shard by. Use ddp."
        )
    yield from max(lists, key=len)
