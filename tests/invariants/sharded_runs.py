"""PPO with four models by FSDP2, and a student with its teacher, watched. Not a test: `test_sharding.py` starts it.

Each process writes `rank-<r>.pt`: the most bytes that arrays took in each phase, what was sent and sampled from in
which dtype, which phases began with weights that were whole.
"""

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lit_rlhf.estimate import Workload
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, RewardSource, ValueModel
from lit_rlhf.modules import (
    DistillationPolicyModule,
    NashMDPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    TeacherModel,
    Updates,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.rewards.model import score_rows
from lit_rlhf.rewards.retokenize import TokenRows
from lit_rlhf.rollout import Sampling, native
from lit_rlhf.types import Completions, Scores
from tests.invariants.forked_runs import do, make_trainer

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
LOAD = Workload(prompts=4, prompt_tokens=12, completion_tokens=8, branches=1)
"""Of a process."""


class HeadReward(Reward):
    """A reward model of random weights, of its own."""

    batch_tokens = 64

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = replace(spec, lora=None)

    def attach(self, backbone: Backbone) -> None:
        self.backbone = Backbone.load(self.spec, lm_head=False, trainable=False).eval()
        self.backbone.add_head("reward", trainable=False)

    def source(self) -> RewardSource | None:
        return RewardSource(self.backbone, "reward", "reward")

    def score(self, completions: Completions) -> Scores:
        prompts = completions.prompt_ids, completions.prompt_mask.bool()
        rows = TokenRows(*prompts, completions.tokens, completions.response_mask.bool())
        found = score_rows(self.backbone, rows, "reward", self.batch_tokens, "random")
        return Scores(found.flatten())


def make_module(tokenizer: str, kind: str) -> PolicyModule:
    """Policy, reference, reward and value model of their own weights, or policy and reference on a bfloat16 base; a
    student and its teacher."""
    spec = ModelSpec(config=SHAPE, tokenizer=tokenizer, dtype="float32")
    if kind == "distill":  # with large heads, which are compared
        spec = replace(spec, config=SHAPE | {"vocab_size": 8192})
        return DistillationPolicyModule(
            spec,
            teacher=TeacherModel(spec),
            sampling=Sampling(max_new_tokens=LOAD.completion_tokens),
            updates=Updates(microbatch_tokens=40),
        )
    if kind == "mixture":
        return NashMDPolicyModule(
            spec,
            HeadReward(spec),
            sampling=Sampling(max_new_tokens=LOAD.completion_tokens),
            updates=Updates(microbatch_tokens=40),
        )
    if kind == "lora":
        spec = replace(spec, dtype="bfloat16", lora=LoraSpec(rank=4))
    return PPOPolicyModule(
        spec,
        HeadReward(spec),
        value=ValueModel(spec, start="spec"),
        sampling=Sampling(max_new_tokens=LOAD.completion_tokens),
        updates=Updates(epochs=1, microbatch_tokens=40),
        recompute_logprobs=True,
    )


class Watch(TorchDispatchMode):
    """What arrays take, and what is sent, by phase.

    Arrays that are made empty are asked for their size again and again: FSDP2 frees the storage of whole weights and
    takes it anew.
    """

    def __init__(self, module: PolicyModule) -> None:
        super().__init__()
        self.module = module
        self.peaks: dict[str, int] = {}
        self.sent: set[tuple[str, str, str]] = set()
        self._seen: set[int] = set()
        self._empty: dict[int, Any] = {}
        self._others = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        phase = self.module.phases.current or "outside"
        for kind in ("allgather_base", "reduce_scatter_base"):
            if kind in func.name():
                dtypes = {str(x.dtype) for x in tree_leaves(args) if isinstance(x, Tensor)}
                self.sent |= {(phase, kind, dtype) for dtype in dtypes}
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        empty = func.name() == "aten::empty.memory_format"
        new = [self._see(x.to_local() if isinstance(x, DTensor) else x, empty) for x in made]
        if any(new) or "fsdp" in func.name():
            owners = [ref() for ref in list(self._empty.values())]
            held = self._others + sum(owner.nbytes() for owner in owners if owner is not None)
            self.peaks[phase] = max(self.peaks.get(phase, 0), held)
        return result

    def _see(self, x: Tensor, empty: bool) -> bool:
        stored = x.layout == torch.strided  # oneDNN's arrays have no storage that could be asked
        owner: Any = x.untyped_storage() if stored else x
        size = owner.nbytes() if stored else x.numel() * x.itemsize
        key = id(owner)
        if not size or key in self._seen:
            return False
        self._seen.add(key)
        if empty:
            self._empty[key] = weakref.ref(owner)
        else:
            self._others += size
        weakref.finalize(owner, self._drop, key, 0 if empty else size)
        return True

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._empty.pop(key, None)
        self._others -= size


class Ends(Callback):
    """No completion ends early."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.backbone.eos_token_ids = ()


def train(run: dict[str, Any], rank: int) -> None:
    """One process of one run."""
    module = make_module(run["world"], run["module"])
    batch = LOAD.batch(LOAD.prompts)
    width = LOAD.prompt_tokens
    rows: dict[str, Any] = {
        key: batch[key][:, :width] for key in ("input_ids", "branch_ids", "position_ids")
    }
    rows |= {"index": torch.arange(LOAD.prompts) + rank * LOAD.prompts, "columns": {}}
    begun_whole: set[str] = set()

    def begin(phase: str, done: int, total: int) -> None:
        if done == 0 and not all(isinstance(weight, DTensor) for weight in module.parameters()):
            begun_whole.add(phase)

    module.phases.listeners.append(begin)
    steps: list[str] = []
    choose = native.choose_step

    def chosen(*args: Any, **kwargs: Any) -> Any:
        step: Any = choose(*args, **kwargs)
        steps.append(f"{type(step).__name__} {step.head.dtype}")
        return step

    native.choose_step = chosen
    trainer = make_trainer(
        run,
        max_epochs=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=[Ends()],
        precision=run["precision"],
    )
    watch = Watch(module)
    with watch:
        trainer.fit(module, DataLoader([rows] * 2, batch_size=None))  # type: ignore[arg-type]
    states = [x for each in trainer.optimizers[0].state.values() for x in each.values()]
    moments = [x for x in states if x.dim()]
    weights = list(module.parameters())
    found = {
        "peaks": watch.peaks,
        "sent": sorted(watch.sent),
        "steps": steps,
        "weights": sorted({str(weight.dtype) for weight in weights}),
        "begun whole": sorted(begun_whole),
        "moments": sorted({str(x.dtype) for x in moments}),
        "divided": sum(x.to_local().nbytes for x in (*weights, *moments) if isinstance(x, DTensor)),
        "model": sum(weight.nbytes for weight in module.backbone.parameters()),
    }
    torch.save(found, f"rank-{rank}.pt")


if __name__ == "__main__":
    do(Path(sys.argv[1]), train)
