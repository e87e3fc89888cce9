"""How fast is training, and what does it take: each method at its size, by phase; and what single choices are worth."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.gpu.methods import KINDS, ONLINE, make
from benchmarks.gpu.result import Result
from benchmarks.gpu.setting import Setting
from benchmarks.workloads.rows import write_reward_adapter
from lit_rlhf.callbacks import PhaseTimer
from lit_rlhf.models import ModelSpec, ValueAdapter
from lit_rlhf.modules import PolicyModule
from lit_rlhf.rewards import ModelReward


class Warm(Callback):
    """Remembers what a timer had counted when the first step was done, and how long steps took after it."""

    def __init__(self, timer: PhaseTimer, setting: Setting, compiled: bool) -> None:
        self.timer = timer
        self.setting = setting
        self.compiled = compiled
        self.first: dict[str, dict[str, float]] = {}
        self.ends: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile the layers, if asked."""
        if self.compiled:
            for layer in pl_module.backbone.decoder.layers:
                layer.compile(dynamic=True)
        self.ends.append(self.setting.now())

    def on_train_batch_end(self, *args: Any) -> None:
        """A step has ended."""
        self.ends.append(self.setting.now())
        if not self.first:
            counts = ("totals", "tokens", "flops")
            self.first = {name: dict(getattr(self.timer, name)) for name in counts}

    def since(self, what: str, phase: str) -> float:
        """Of a phase after the first step: seconds (`totals`), `tokens` or `flops`."""
        return float(getattr(self.timer, what).get(phase, 0) - self.first[what].get(phase, 0))


def supervised(setting: Setting, result: Result) -> None:
    """SFT with LoRA on bfloat16, and in full from float32 weights under bf16-mixed."""
    _fit(setting, result, "SFT", "LoRA r16")
    if setting.size.full:
        spec = setting.spec(lora=None, dtype="float32")
        _fit(setting, result, "SFT", "full, bf16-mixed", spec, precision="bf16-mixed")


def reward_model(setting: Setting, result: Result) -> None:
    """Pairs of a prompt in one row."""
    _fit(setting, result, "reward model", "LoRA r16")


def dpo(setting: Setting, result: Result) -> None:
    """Pairs in one row, and as rows of their own."""
    for branching in ("shared", "expanded"):
        _fit(setting, result, "DPO", f"LoRA r16, {branching}", setting.spec(branching=branching))


def ppo(setting: Setting, result: Result) -> None:
    """PPO with a value head on the policy."""
    _fit(setting, result, "PPO", "LoRA r16")


def grpo(setting: Setting, result: Result) -> None:
    """GRPO, and with recomputed layers."""
    _fit(setting, result, "GRPO", "LoRA r16")
    _fit(setting, result, "GRPO", "layers recomputed", setting.spec(gradient_checkpointing=True))


def nf4(setting: Setting, result: Result) -> None:
    """PPO with policy, reference, reward and value on one base of 4 bits, with recomputed layers and without."""
    adapter = setting.work / "reward"
    spec = setting.spec(quantization="nf4")
    recomputed = setting.spec(quantization="nf4", gradient_checkpointing=True)
    write_reward_adapter(spec, adapter)
    reward = partial(ModelReward, str(adapter), share_base=True)
    for title, each in (("", spec), (", layers recomputed", recomputed)):
        options = {"reward": reward(), "value": ValueAdapter(start="reward")}
        _fit(setting, result, "PPO", f"four roles on one nf4 base{title}", each, **options)


def kernels(setting: Setting, result: Result) -> None:
    """DPO's and GRPO's steps without the library's kernels; with them they are parts of their own."""
    plain = setting.spec(kernels="plain")
    _fit(setting, result, "DPO", "kernels: plain", plain)
    _fit(setting, result, "GRPO", "kernels: plain", plain)


def compiled(setting: Setting, result: Result) -> None:
    """SFT's step with each decoder layer compiled: one role and one pass, so fewest graphs."""
    _fit(setting, result, "SFT", "LoRA r16, layers compiled", compiled=True)


def _fit(
    setting: Setting,
    result: Result,
    name: str,
    title: str,
    spec: ModelSpec | None = None,
    *,
    precision: str = "32-true",
    compiled: bool = False,
    **options: Any,
) -> None:
    """Train for some steps, and add seconds, tokens per second and utilisation by phase, and the peak of memory."""
    size = setting.size
    batch = size.rows if name == "SFT" else size.rows // 2
    setting.forget()
    with result.attempt(f"{name}, {title}"):
        module = make(
            name, spec or setting.spec(), tokens=size.response, samples=size.samples, **options
        )
        timer = PhaseTimer(peak_flops=setting.peak or 1.0)
        warm = Warm(timer, setting, compiled)
        steps = size.steps[name in ONLINE]
        data = setting.data(KINDS[name], batch, setting.rows(batch * steps))
        setting.trainer([timer, warm], precision=precision).fit(module, data)
        _measure(result, f"{name}, {title}", warm, setting, by_phase=name in ONLINE)
        if isinstance(module, PolicyModule):
            tokens = module.microbatch_size.tokens
            result.note(f"{name}, {title}", f"microbatches of {tokens} padded tokens")


def _measure(result: Result, title: str, warm: Warm, setting: Setting, *, by_phase: bool) -> None:
    steps = len(warm.ends) - 2
    whole = (warm.ends[-1] - warm.ends[1]) / steps
    result.measure(title, seconds=whole, first_seconds=warm.ends[1] - warm.ends[0])
    result.measure(title, **setting.memory())
    for phase in ("rollout", "reward", "reference", "update"):
        seconds = warm.since("totals", phase)
        if not seconds:
            continue
        numbers = {"seconds": seconds / steps}
        if tokens := warm.since("tokens", phase):
            numbers["tokens_per_s"] = tokens / seconds
        if (flops := warm.since("flops", phase)) and setting.peak:
            numbers["mfu"] = flops / seconds / setting.peak
        result.measure(f"{title}: {phase}" if by_phase else title, **numbers)


PARTS: dict[str, Callable[[Setting, Result], None]] = {
    part.__name__: part
    for part in (ppo, grpo, dpo, reward_model, supervised, nf4, kernels, compiled)
}
