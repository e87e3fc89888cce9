"""The modules that `process_runs.py` trains beside the usual ones, for the slow walk of `test_processes.py`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule

from lit_rlhf.callbacks import MovingReference
from lit_rlhf.data import (
    DemonstrationDataModule,
    FileSource,
    PromptTextDataModule,
    UnpairedDataModule,
)
from lit_rlhf.judges import LocalJudge
from lit_rlhf.models import LoraSpec, ModelSpec, ValueHead, ValueModel
from lit_rlhf.modules import (
    BestOfNPolicyModule,
    DAPOPolicyModule,
    GRPOPolicyModule,
    NashMDPolicyModule,
    OnlineDPOPolicyModule,
    PPOPolicyModule,
    PPOPtxPolicyModule,
    PreferenceModule,
    REBELPolicyModule,
    ReMaxPolicyModule,
    RewardModelModule,
    RLHFModule,
    SPPOPolicyModule,
    SupervisedModule,
    Updates,
    XPOPolicyModule,
)
from lit_rlhf.objectives import KTO, ORPO, BetaDPO, HeadEnsemble, LengthDesensitizedDPO
from lit_rlhf.rewards import JudgeReward, LengthReward, Reward
from lit_rlhf.types import Completions, Scores

OTHERS = (
    "sft-lora",
    "reward-heads",
    "kto",
    "orpo",
    "tokens",
    "beta",
    "moving",
    "moving-lora",
    "head",
    "judge",
    "failing",
    "online",
    "sppo",
    "xpo",
    "nash",
    "rebel",
    "remax",
    "dapo",
    "ptx",
    "best",
)


class FailingReward(Reward):
    """Leaves out a third of what was written: unlike numbers of the processes' rows."""

    def score(self, completions: Completions) -> Scores:
        lengths = completions.response_mask.sum(-1)
        first = completions.tokens[:, 0].float()
        return Scores(first / 100, {"first": first}, failed=(lengths + first.long()) % 3 == 0)


def other_makers(
    world: Path, shared: Mapping[str, Any], acting: Mapping[str, Any]
) -> dict[str, Callable[[], RLHFModule]]:
    """By kind; `shared` are options of all modules, `acting` of policies."""
    spec = ModelSpec(name=str(world / "tiny-model"))
    on_one_base = ModelSpec(name=str(world / "tiny-model"), lora=LoraSpec(rank=2))
    reward = LengthReward(target=4.0, scale=2.0)
    # Of completions that begin alike once: processes ask it different numbers of questions.
    judge = LocalJudge(template="{{ response[:1] }} good?", words={"yes": 1, "no": 0}, batch_size=1)
    one_step = {**acting, "updates": Updates(microbatch_tokens=48)}  # what Reinforce is right for
    return {
        "best": lambda: BestOfNPolicyModule(spec, reward, num_samples=3, **acting),
        "sft-lora": lambda: SupervisedModule(on_one_base, **shared),
        "reward-heads": lambda: RewardModelModule(spec, HeadEnsemble(), **shared),
        "kto": lambda: PreferenceModule(spec, KTO(), **shared),
        "orpo": lambda: PreferenceModule(spec, ORPO(), **shared),
        "tokens": lambda: PreferenceModule(spec, LengthDesensitizedDPO(), **shared),
        "beta": lambda: PreferenceModule(spec, BetaDPO(), **shared),
        "moving": lambda: PreferenceModule(spec, **shared),
        "moving-lora": lambda: PreferenceModule(on_one_base, **shared),
        "head": lambda: PPOPolicyModule(spec, reward, value=ValueHead(), **acting),
        "judge": lambda: GRPOPolicyModule(spec, JudgeReward(judge), num_samples=4, **acting),
        "failing": lambda: GRPOPolicyModule(spec, FailingReward(), num_samples=4, **acting),
        "online": lambda: OnlineDPOPolicyModule(spec, reward, **acting),
        "sppo": lambda: SPPOPolicyModule(spec, reward, **acting),
        "xpo": lambda: XPOPolicyModule(spec, reward, **acting),
        "nash": lambda: NashMDPolicyModule(spec, reward, **one_step),
        "rebel": lambda: REBELPolicyModule(spec, reward, **acting),
        "remax": lambda: ReMaxPolicyModule(spec, reward, **one_step),
        "dapo": lambda: DAPOPolicyModule(spec, reward, num_samples=3, oversampling=2, **one_step),
        "ptx": lambda: PPOPtxPolicyModule(
            spec, reward, value=ValueModel(spec), ptx_coef=1.0, **acting
        ),
    }


def callbacks_of(kind: str) -> list[Callback]:
    """What a run of a kind has beside its module."""
    return [MovingReference(every_n_iterations=1)] if kind.startswith("moving") else []


def other_data(kind: str, world: Path, ranks: int) -> LightningDataModule | None:
    """Of kinds whose data are no other kind's."""
    options: dict[str, Any] = {
        "tokenizer": str(world / "tiny-model"),
        "batch_size": 4 // ranks,
        "cache_dir": str(world / "cache"),
    }

    def sources(name: str) -> dict[str, FileSource]:
        return {
            "train": FileSource(str(world / f"{name}.jsonl")),
            "val": FileSource(str(world / f"{name}_val.jsonl")),
        }

    if kind == "kto":
        return UnpairedDataModule(**sources("preferences"), seed=3, **options)
    if kind == "ptx":
        text = DemonstrationDataModule(**sources("demonstrations"), seed=3, **options)
        return PromptTextDataModule(**sources("prompts"), text=text, seed=3, **options)
    return None
