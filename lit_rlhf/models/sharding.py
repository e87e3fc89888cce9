"""FSDP2: parameters divided over processes, and gathered for generation; eval mode for a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models.backbone import Backbone

_WHOLE: "WeakSet[FSDPModule]" = WeakSet()
"""Parts whose parameters are gathered now."""


def shard(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Divide a backbone's parameters over the processes of a one-dimensional mesh, layer by layer.

    Raises:
        ConfigurationError: The base is quantized: bitsandbytes' packed weights can't be divided by row.
    """
    if backbone.spec.quantization != "none":
        raise ConfigurationError(
            f"backbone.quantization={backbone.spec.quantization!r} can't be sharded by "
            "ModelParallelStrategy: the packed weights "
            "can't be divided by row. Use ddp (each process holds the small quantized base), or quantization: none."
        )
    for layer in _layers(backbone.decoder):
        fully_shard(layer, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    # FSDP2 settles who is the root at the first call that goes through its hooks; unsharding a layer before would make
    # that layer a root of its own.
    backbone.become_root = _nothing  # type: ignore[assignment]
    register_fsdp_forward_method(backbone, "become_root")


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Whole parameters on each process for the time of a `with`: for passes without gradient, without collectives.

    Processes may then run different numbers of passes, as generation by steps and batches by length need. Acts on all
    sharded backbones within a module, and does nothing where there are none; within another of the same, nothing, so
    that one process alone may call what does so itself.
    """
    sharded = [
        part for part in module.modules() if isinstance(part, FSDPModule) and part not in _WHOLE
    ]
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
            is_root = hasattr(part, "become_root")
            part.set_reshard_after_forward(not is_root, recurse=False)


def divide(module: nn.Module) -> None:
    """Divide what a forward without a backward left whole: changes of whole parameters are lost when that is done."""
    for part in module.modules():
        if isinstance(part, FSDPModule) and part not in _WHOLE:
            part.reshard()


def _layers(decoder: nn.Module) -> Iterator[nn.Module]:
    lists = [part for part in decoder.children() if isinstance(part, nn.ModuleList)]
    if not lists:
        raise ConfigurationError(
            f"{type(decoder).__name__} has no list of layers to shard by. Use ddp."
        )
    yield from max(lists, key=len)


def _nothing() -> None:
    """What `become_root` does, apart from FSDP2's hooks."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time of a `with`; each submodule's own flag is restored, so frozen parts stay in eval mode."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag
