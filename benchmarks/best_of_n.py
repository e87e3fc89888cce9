"""Best-of-n into weights beside best-of-n itself and other methods, at equal KL, in the demo's world.

    lit-rlhf demo --output runs/demo
    python -m benchmarks.best_of_n runs/demo --figure docs/best_of_n.svg

One initial policy and one reward model, those of the demo; each method at several strengths and from several seeds of
rollouts. DPO learns from as many prompts, each with two samples of the initial policy whose soft label is the reward
model's. A policy is judged by what it writes to held-out prompts: the reward model's score, the world's utility (gold)
and the KL to the initial policy. Best-of-n picks by the reward model among samples of the initial policy; its KL is the
bound log n - (n-1)/n. Points that are there already, in `<demo>/best_of_n.json`, are kept.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from benchmarks.markdown import spelled, table
from benchmarks.quiet import quiet_trainer
from lit_rlhf.data import ExplicitPrompt, PreferenceDataModule, PromptDataModule, RowsSource
from lit_rlhf.demo.config import DemoConfig
from lit_rlhf.demo.stages import complete_heldout
from lit_rlhf.functional import best_of_n_kl
from lit_rlhf.models import ModelSpec, ValueModel
from lit_rlhf.modules import (
    BestOfNPolicyModule,
    GRPOPolicyModule,
    OnlineDPOPolicyModule,
    PolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RLOOPolicyModule,
    TeacherModel,
    Updates,
    ValueLoss,
)
from lit_rlhf.objectives import DPO, FixedKL, SoftLabelDPO
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout import Sampling

STRENGTHS: dict[str, tuple[float, ...]] = {
    "best of n": (2, 4, 8, 16),
    "BestOfNPolicyModule": (2, 4, 16),
    "RLOO": (2.0, 1.0, 0.5),
    "GRPO": (2.0, 1.0, 0.5),
    "PPO": (2.0, 1.0, 0.5),
    "online DPO": (2.0, 1.0, 0.5),
    "DPO": (2.0, 1.0, 0.5),
}
"""n, and of the others beta."""
COLOURS = {
    "best of n": "#777777",
    "BestOfNPolicyModule": "#b5402a",
    "RLOO": "#2f6f9f",
    "GRPO": "#5aa469",
    "PPO": "#8e5ea2",
    "online DPO": "#d28b26",
    "DPO": "#3f3f3f",
}
_PROMPTS, _SAMPLES, _ANCHORS, HELDOUT = 32, 4, 16, 512


def module_of(
    method: str,
    strength: float,
    demo: Path,
    seed: int,
    iterations: int,
    model: Path | None = None,
    **more: Any,
) -> PolicyModule:
    """A policy to train; or `model`, one that is trained, beside the initial one."""
    initial = ModelSpec(name=str(demo / "sft" / "export"))
    spec = initial if model is None else ModelSpec(name=str(model))
    options: dict[str, Any] = {
        "reward": ModelReward(str(demo / "reward" / "export"), normalize=True),
        "sampling": Sampling(max_new_tokens=DemoConfig().policy.max_new_tokens),
        "missing_eos_penalty": 1.0,
        "num_samples": _SAMPLES,
        "updates": Updates(epochs=2, minibatches=2),
        "optimizer": partial(AdamW, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95)),
        "lr_scheduler": partial(
            LinearLR, start_factor=1.0, end_factor=0.1, total_iters=4 * iterations
        ),
        "seed": seed,
        "reference": None if model is None else TeacherModel(initial),
        **more,
    }
    if method == "BestOfNPolicyModule":
        return BestOfNPolicyModule(spec, n=int(strength), num_anchors=_ANCHORS, **options)
    if method == "online DPO":
        return OnlineDPOPolicyModule(spec, loss=DPO(strength), **options)
    options["kl"] = FixedKL(strength)
    if method == "PPO":
        critic = {"value": ValueModel(), "value_loss": ValueLoss(coef=0.5, lr=1e-3)}
        return PPOPolicyModule(spec, **critic, **options)
    return (GRPOPolicyModule if method == "GRPO" else RLOOPolicyModule)(spec, **options)


def data_of(demo: Path, seed: int, iterations: int, heldout: int = HELDOUT) -> PromptDataModule:
    """Prompts to train on, and those that nothing is trained on."""
    world = DemoConfig().world
    return PromptDataModule(
        RowsSource(world.prompts(iterations * _PROMPTS)),
        RowsSource(world.prompts(heldout, "heldout")),
        tokenizer=str(demo / "tokenizer"),
        batch_size=_PROMPTS,
        eval_batch_size=heldout,
        seed=seed,
        cache_dir=str(demo / "cache"),
    )


def judged(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the reward model and the world say of samples."""
    return {"reward": fmean(row["score"] for row in rows), "gold": fmean(gold(rows))}


def gold(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The world's utilities of samples."""
    texts = ([row[name] for row in rows] for name in ("prompt", "response"))
    return DemoConfig().world.world.utilities(*texts)


def trained(method: str, strength: float, demo: Path, seed: int, iterations: int) -> dict[str, Any]:
    """Train a policy and judge it."""
    start = time.process_time()
    data = data_of(demo, seed, iterations)
    with tempfile.TemporaryDirectory() as folder:
        model = None
        if method == "DPO":
            model = Path(folder) / "export"
            directly(strength, demo, seed, iterations).export(model)
        module = module_of(method, strength, demo, seed, iterations, model)
        trainer = quiet_trainer(limit_val_batches=0)
        if model is None:
            trainer.fit(module, datamodule=data)
        trainer.limit_val_batches = 1
        rows, kl = complete_heldout(trainer, module, data)
    return {**judged(rows), "kl": kl, "seconds": time.process_time() - start}


def directly(beta: float, demo: Path, seed: int, iterations: int) -> PreferenceModule:
    """Offline DPO: on as many prompts, with two pairs of each, in as many steps."""
    rows = []
    for first, second in pairwise_samples(demo, seed, iterations * _PROMPTS):
        chosen, rejected = sorted((first, second), key=lambda row: -row["score"])
        p = torch.tensor(chosen["score"] - rejected["score"]).sigmoid().item()
        texts = {"prompt": chosen["prompt"], "chosen": chosen["response"]}
        rows.append({**texts, "rejected": rejected["response"], "p_chosen": p})
    steps = 4 * iterations
    module = PreferenceModule(
        ModelSpec(name=str(demo / "sft" / "export")),
        loss=SoftLabelDPO(beta),
        optimizer=partial(AdamW, lr=3e-4, weight_decay=0.0, betas=(0.9, 0.95)),
        lr_scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=steps),
        seed=seed,
    )
    data = PreferenceDataModule(
        RowsSource(rows),
        tokenizer=str(demo / "tokenizer"),
        format=ExplicitPrompt(),
        batch_size=-(-len(rows) // steps),
        seed=seed,
        cache_dir=str(demo / "cache"),
    )
    quiet_trainer().fit(module, datamodule=data)
    return module


def pairwise_samples(
    demo: Path, seed: int, prompts: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of different samples of the initial policy that ended by themselves, two of each prompt."""
    found = sampled(demo, seed, prompts, _SAMPLES, heldout=False)
    pairs = [(group[i], group[i + 1]) for group in found for i in range(0, _SAMPLES, 2)]
    return [
        pair
        for pair in pairs
        if pair[0]["response"] != pair[1]["response"] and all(row["finished"] for row in pair)
    ]


def sampled(
    demo: Path, seed: int, prompts: int, samples: int, *, heldout: bool
) -> list[list[dict[str, Any]]]:
    """Scored samples of the initial policy, by prompt."""
    module = module_of("RLOO", 1.0, demo, seed, 1)
    data = data_of(demo, seed, prompts // _PROMPTS, prompts if heldout else _PROMPTS)
    trainer = quiet_trainer()
    module.configure_model()
    trainer.strategy.connect(module)
    data.prepare_data()
    data.setup("fit")
    groups = []
    for batch in data.val_dataloader() if heldout else data.train_dataloader():
        _, rows = module.sample(batch, module.sampling, "rollout", samples)
        groups += [rows[i : i + samples] for i in range(0, len(rows), samples)]
        module.iteration += 1  # other seeds
    return groups


def picked(demo: Path, seed: int) -> list[dict[str, Any]]:
    """Best-of-n of the initial policy: what the reward model picks among the first n of its samples."""
    most = int(max(STRENGTHS["best of n"]))
    groups = sampled(demo, seed, HELDOUT // 2, most, heldout=True)
    points = []
    for n in STRENGTHS["best of n"]:
        best = [max(group[: int(n)], key=lambda row: row["score"]) for group in groups]
        point = {"method": "best of n", "strength": n, "seed": seed, "kl": best_of_n_kl(int(n))}
        points.append(point | judged(best))
    return points


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Reward model and gold against KL, mean and deviation over seeds, as SVG."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("reward", "gold"), ("reward model", "gold utility"), strict=True
    ):
        for method, strengths in STRENGTHS.items():
            rows = [of(points, method, strength) for strength in strengths]
            means = [[fmean(p[key] for p in row) for row in rows] for key in ("kl", name)]
            spread = [[stdev([p[key] for p in row]) for row in rows] for key in (name, "kl")]
            style = {"color": COLOURS[method], "marker": "o", "ms": 4, "lw": 1.4}
            axes.errorbar(*means, *spread, label=method, elinewidth=0.7, **style)
            small = {"textcoords": "offset points", "fontsize": 7, "color": COLOURS[method]}
            for x, y, strength in zip(*means, strengths, strict=True):
                axes.annotate(f"{strength:g}", (x, y), (4, -9), **small)
        axes.set_xlabel("KL to the initial policy, nats per completion")
        axes.set_ylabel(label)
        axes.grid(color="#e8eaee")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


def of(points: Sequence[dict[str, Any]], method: str, strength: float) -> list[dict[str, Any]]:
    """Those of a method at a strength, a point a seed."""
    return [p for p in points if (p["method"], p["strength"]) == (method, strength)]


def shown(points: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and deviation over seeds."""
    rows = []
    for method, strengths in STRENGTHS.items():
        for strength in strengths:
            own = of(points, method, strength)
            cells = [spelled([p[key] for p in own]) for key in ("kl", "reward", "gold")]
            rows.append([method, f"{strength:g}", *cells])
    return table(["method", "n, or beta", "KL", "reward model", "gold"], rows)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.best_of_n", description=__doc__)
    parser.add_argument("demo", type=Path, help="directory that `lit-rlhf demo` wrote")
    parser.add_argument("--figure", type=Path, default=Path("docs/best_of_n.svg"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.demo / "best_of_n.json"
    points: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    done = {(p["method"], p["strength"], p["seed"]) for p in points}
    for seed in options.seeds:
        if ("best of n", 2, seed) not in done:
            points += picked(options.demo, seed)
    wanted = [
        (method, strength, seed)
        for method, strengths in STRENGTHS.items()
        for strength in (strengths if method != "best of n" else ())
        for seed in options.seeds
    ]
    for method, strength, seed in wanted:
        if (method, strength, seed) in done:
            continue
        found = trained(method, strength, options.demo, seed, options.iterations)
        points.append({"method": method, "strength": strength, "seed": seed} | found)
        file.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
        print(points[-1], flush=True)
    print(shown(points))
    draw(points, options.figure)


if __name__ == "__main__":
    main()
