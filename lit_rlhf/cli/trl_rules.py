"""Values of TRL's options as values of ours, where more is to be done than to copy them."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

Given = Mapping[str, Any]
"""TRL's options of a run by name: those that it sets, and TRL's defaults where they are carried over as well."""

Rule = Callable[[Any, Given], dict[str, Any]]
"""From a value, and all that is given, to our options by dotted name; else raises `NotCarried`."""


class NotCarried(Exception):  # noqa: N818  (no error: a line of the answer)
    """A value that has no counterpart; the sentence says what to do instead."""


def component(name: str, /, **options: Any) -> dict[str, Any]:
    """A class with its options, as configurations write it."""
    return {"class_path": name, "init_args": options} if options else {"class_path": name}


def copied(*paths: str) -> Rule:
    """The same value, in one place or several."""
    return lambda value, _: dict.fromkeys(paths, value)


def looked_up(path: str, values: Mapping[Any, Any], otherwise: str) -> Rule:
    """One of a few values, each with its own counterpart."""

    def rule(value: Any, _: Given) -> dict[str, Any]:
        if isinstance(value, list | dict) or value not in values:
            raise NotCarried(otherwise)
        return {path: values[value]}

    return rule


def whole(path: str, otherwise: str) -> Rule:
    """A whole number of 1 or more."""

    def rule(value: Any, _: Given) -> dict[str, Any]:
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise NotCarried(otherwise)
        return {path: int(value)}

    return rule


def untouched(_value: Any, _: Given) -> dict[str, Any]:
    """Nothing to set: it is read by the rule of another option, or ours does so already."""
    return {}


def betas(_: Any, given: Given) -> dict[str, Any]:
    """Both of Adam's at once."""
    return {"model.optimizer.betas": [given["adam_beta1"], given["adam_beta2"]]}


def optimizer(value: Any, _: Given) -> dict[str, Any]:
    """AdamW of torch or bitsandbytes; the rate and the like are set in it by other rules."""
    classes = dict.fromkeys(("adamw_torch", "adamw_torch_fused"), "torch.optim.AdamW")
    classes |= dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), "bitsandbytes.optim.AdamW8bit")
    classes |= {"paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit"}
    if value not in classes:
        raise NotCarried("Name its class in `model.optimizer`: any optimizer of torch's kind goes.")
    return {"model.optimizer.class_path": classes[value]}


def schedule(value: Any, given: Given) -> dict[str, Any]:
    """The schedule, where its length is known: torch's and ours count optimizer steps."""
    steps, warmup = given.get("max_steps") or -1, given.get("warmup_steps") or 0
    warmup = warmup or given.get("warmup_ratio") or 0
    if 0 < warmup < 1:
        if steps < 1:
            raise NotCarried(_LENGTH)
        warmup = math.ceil(warmup * steps)
    path, linear = "model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR"
    if value == "constant":
        return {path: None}
    if value == "constant_with_warmup":
        start = 1 / (warmup + 1)
        return {path: component(linear, start_factor=start, total_iters=max(1, int(warmup)))}
    if value == "cosine" and steps > 0:
        return {path: component("WarmupCosine", total_steps=steps, warmup_steps=int(warmup))}
    if value == "linear" and steps > 0 and not warmup:
        return {path: component(linear, start_factor=1.0, end_factor=0.0, total_iters=steps)}
    if value in ("linear", "cosine") and steps < 1:
        raise NotCarried(_LENGTH)
    raise NotCarried(
        "No class here has this shape: `WarmupCosine` is the nearest, or one of torch."
    )


_LENGTH = (
    "It needs the number of optimizer steps, which `max_steps` would say: set `model.lr_scheduler` to `WarmupCosine` "
    "with `total_steps` and `warmup_steps`. Until then the recipe's short warm-up and constant rate hold."
)


def epochs(value: Any, given: Given) -> dict[str, Any]:
    """Whole epochs, where nothing else bounds the run."""
    bound = "total_episodes" if "num_mini_batches" in given else "max_steps"  # PPO reads no steps
    if (given.get(bound) or -1) > 0:
        return {}
    return whole(
        "trainer.max_epochs", "Epochs are whole: `trainer.limit_train_batches` is a share of one."
    )(value, given)


def max_steps(value: Any, _: Given) -> dict[str, Any]:
    """An end by optimizer steps, over as many epochs as that takes."""
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise NotCarried("Below 1 it bounds nothing, here as there.")
    return _ended(steps=int(value))


def _ended(**limit: int) -> dict[str, Any]:
    return {
        "trainer.max_epochs": -1,
        "trainer.callbacks.StopAfter": component("StopAfter", **limit),
    }


def evaluation(value: Any, given: Given) -> dict[str, Any]:
    """Validation every so many training batches; TRL counts optimizer steps."""
    if given.get("eval_strategy") != "steps" or value != int(value):
        raise NotCarried("It is read with `eval_strategy: steps` and a whole number only.")
    batches = int(value) * int(given.get("gradient_accumulation_steps") or 1)
    return {"trainer.val_check_interval": batches, "trainer.check_val_every_n_epoch": None}


def logger(value: Any, _: Given) -> dict[str, Any]:
    """The first logger that both have."""
    names = [value] if isinstance(value, str) else list(value)
    loggers: dict[str, Any] = {"none": False, "tensorboard": True}
    loggers |= {"wandb": component("WandbLogger"), "mlflow": component("MLFlowLogger")}
    if len(names) != 1 or names[0] not in loggers:
        raise NotCarried(
            "Set `trainer.logger` to the loggers of Lightning; `metrics.jsonl` is written anyhow."
        )
    return {"trainer.logger": loggers[names[0]]}


def lora(path: str, policy: bool = False) -> Rule:
    """An option of LoRA, read where LoRA is asked for."""

    def rule(value: Any, given: Given) -> dict[str, Any]:
        if not given.get("use_peft"):
            raise NotCarried("Read with `use_peft: true` only.")
        if policy and path.endswith("dropout") and value:
            raise NotCarried(
                "Dropout must be 0 in a policy: the ratio of one that didn't change would differ from 1."
            )
        if path.endswith("target_modules") and value == ["all-linear"]:
            value = "all-linear"
        return {f"model.backbone.lora.{path}": value}

    return rule


def precision(_: Any, given: Given) -> dict[str, Any]:
    """Of the two that ask for half precision: either says no where the other says yes."""
    half = "bf16-mixed" if given.get("bf16") else "16-mixed" if given.get("fp16") else "32-true"
    return {"trainer.precision": half}


def quantization(_: Any, given: Given) -> dict[str, Any]:
    """nf4 or fp4, or int8."""
    if given.get("load_in_4bit"):
        return {"model.backbone.quantization": given.get("bnb_4bit_quant_type") or "nf4"}
    return {"model.backbone.quantization": "int8" if given.get("load_in_8bit") else "none"}


def step_loss(value: Any, _: Given) -> dict[str, Any]:
    """SFT's loss: the likelihood alone."""
    if value not in ("nll", "chunked_nll"):
        raise NotCarried("SupervisedModule trains by the likelihood alone.")
    return {}


# -- direct methods ----------------------------------------------------------------------------------------------------


def dpo_loss(value: Any, given: Given) -> dict[str, Any]:
    """The loss of DPO's trainer: one class here for each, or a weighted sum of several."""
    names = [value] if isinstance(value, str) else list(value)
    losses = [_pair_loss(name, given) for name in names]
    if len(losses) == 1:
        return {"model.loss": losses[0]}
    weights = given.get("loss_weights")
    options = {"losses": losses} | ({"weights": list(weights)} if weights else {})
    return {"model.loss": component("lit_rlhf.objectives.WeightedSum", **options)}


def _pair_loss(name: str, given: Given) -> dict[str, Any]:
    beta, smoothing = given["beta"], given.get("label_smoothing") or 0.0
    divergence = given.get("f_divergence_type") or "reverse_kl"
    altered = [given.get("ld_alpha") is not None, bool(given.get("use_weighting"))]
    altered.append(divergence != "reverse_kl")
    if sum(altered) > (name == "sigmoid"):
        raise NotCarried(
            "`ld_alpha`, `use_weighting` and `f_divergence_type` are losses of their own here, and not combined with "
            f"each other or with {name!r}."
        )
    if altered[0]:
        return component("LengthDesensitizedDPO", beta=beta, alpha=given["ld_alpha"])
    if altered[1]:
        return component("WPO", beta=beta)
    named = {"forward_kl": "ForwardKLDPO", "js_divergence": "JensenShannonDPO"}
    if divergence in named:
        return component(named[divergence], beta=beta)
    if altered[2]:
        alpha = given.get("f_alpha_divergence_coef")
        alpha = 0.5 if alpha is None else alpha
        return component("AlphaDivergenceDPO", beta=beta, alpha=alpha)
    same = {"sigmoid": "DPO", "nca_pair": "NCAPair", "bco_pair": "BCOPair", "aot": "AOT"}
    same |= {"aot_unpaired": "UnpairedAOT", "apo_zero": "APOZero", "apo_down": "APODown"}
    same |= {"sigmoid_norm": "LengthNormalizedDPO", "sppo_hard": "SPPO"}
    if name in same:
        return component(same[name], beta=beta)
    others = {
        "hinge": partial(component, "RSOHinge", gamma=beta),
        "ipo": partial(component, "MeanIPO", tau=beta),
        "exo_pair": partial(component, "EXO", beta=beta, label_smoothing=smoothing or 1e-3),
        "robust": partial(component, "RobustDPO", beta=beta, label_smoothing=smoothing),
        "discopop": partial(
            component, "DiscoPOP", beta=beta, temperature=given.get("discopop_tau") or 0.05
        ),
        "sft": partial(component, "NLL"),
    }
    if name not in others:
        raise NotCarried(f"{name!r} is no loss of TRL 1.16.")
    return others[name]()


def kto_loss(value: Any, given: Given) -> dict[str, Any]:
    """KTO, or APO-zero of single answers."""
    if value == "kto":
        weights = {name: given[name] for name in ("desirable_weight", "undesirable_weight")}
        return {"model.loss": component("KTO", beta=given["beta"], **weights)}
    if value == "apo_zero_unpaired":
        return {"model.loss": component("UnpairedAPOZero", beta=given["beta"])}
    raise NotCarried(f"{value!r} is no loss of TRL 1.16.")


def moving_reference(value: Any, given: Given) -> dict[str, Any]:
    """The callback that moves the reference."""
    if not value:
        return {}
    alpha, every = given.get("ref_model_mixup_alpha"), given.get("ref_model_sync_steps")
    moved = component("MovingReference", alpha=alpha or 0.6, every_n_iterations=every or 512)
    return {"trainer.callbacks.MovingReference": moved}


# -- policies ----------------------------------------------------------------------------------------------------------


def ppo_batch(_: Any, given: Given) -> dict[str, Any]:
    """Prompts of an iteration: what TRL calls the local batch."""
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches")
    return {"data.batch_size": math.prod(int(given[name]) for name in sizes)}


def episodes(value: Any, given: Given) -> dict[str, Any]:
    """An end by the number of prompts, in whole iterations."""
    if not value:
        return {}
    return _ended(iterations=math.ceil(value / ppo_batch(None, given)["data.batch_size"]))


def group_batch(_: Any, given: Given) -> dict[str, Any]:
    """Prompts of an iteration and its optimizer steps: TRL counts completions, and batches of them."""
    rows, accumulated = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    whole_batch = given.get("generation_batch_size")
    batches = (
        whole_batch // rows if whole_batch else given.get("steps_per_generation") or accumulated
    )
    prompts = rows * batches // given["num_generations"]
    if prompts < 1:
        raise NotCarried(
            "A process has fewer completions than a group: set `data.batch_size`, in prompts."
        )
    steps = max(1, batches // accumulated)
    return {"data.batch_size": prompts, "model.updates.minibatches": min(steps, prompts)}


def sampled_whole(neutral: float) -> Rule:
    """Options that would sample from another distribution than the one trained on."""

    def rule(value: Any, _: Given) -> dict[str, Any]:
        if value in (neutral, None):
            return {}
        raise NotCarried(
            "Rollouts come from the whole distribution, whose log-probs the loss uses; "
            "`model.eval_sampling` may have it."
        )

    return rule


def clip(value: Any, given: Given) -> dict[str, Any]:
    """The surrogate: per token, per sequence, or on the weight."""
    low, high = value, given.get("epsilon_high")
    high = low if high is None else high
    if given.get("loss_type") == "cispo":
        return {"model.surrogate": component("WeightClipped", high=high)}
    if given.get("importance_sampling_level") == "sequence":
        return {"model.surrogate": component("SequenceClipped", low=low, high=high)}
    dual = {} if given.get("delta") is None else {"dual": given["delta"]}
    return {"model.surrogate": component("ClippedSurrogate", low=low, high=high, **dual)}


def grpo_reduction(value: Any, given: Given) -> dict[str, Any]:
    """How tokens are averaged."""
    kinds = {"grpo": component("SequenceMean")}
    kinds |= dict.fromkeys(("dapo", "bnpo", "cispo"), component("TokenMean"))
    kinds["dr_grpo"] = component("ConstantLength", length=given["max_completion_length"])
    if value not in kinds:
        raise NotCarried(f"{value} has no surrogate here; GRPO's stands in its place.")
    return {"model.reduction": kinds[value]}


def scaled(value: Any, _: Given) -> dict[str, Any]:
    """Whether scores are divided by their spread, and by which: the group's or the batch's."""
    kinds = {"group": "GroupNormalized", True: "GroupNormalized"}
    kinds |= {"none": "GroupCentered", False: "GroupCentered", "batch": "BatchNormalized"}
    if value not in kinds:
        raise NotCarried("TRL has group, batch and none.")
    return {"model.advantage": component(kinds[value])}


def whitened(value: Any, _: Given) -> dict[str, Any]:
    """RLOO's advantages with mean 0 and variance 1."""
    return (
        {"model.advantage": component("Whitened", advantage=component("LeaveOneOut"))}
        if value
        else {}
    )


def rewards(value: Any, given: Given) -> dict[str, Any]:
    """Functions and reward models, summed where there are several."""
    listed = value if isinstance(value, list) else [value]
    names = [str(each) for each in listed]
    parts = {re.split(r"[/:.]", name)[-1]: _reward(name) for name in names}
    weights = given.get("reward_weights")
    if len(parts) == 1 and not weights:
        return {"model.reward": next(iter(parts.values()))}
    if len(parts) < len(names):
        raise NotCarried("Two rewards have one name: set `model.reward` to a `WeightedSum`.")
    options: dict[str, Any] = {"rewards": parts}
    if weights:
        options["weights"] = dict(zip(parts, weights, strict=False))
    return {"model.reward": component("lit_rlhf.rewards.WeightedSum", **options)}


def _reward(name: str) -> dict[str, Any]:
    if ":" in name or ("." in name and "/" not in name):
        return component("FunctionReward", function=name)
    if name in ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward") or (
        name == "get_soft_overlong_punishment"
    ):
        return component("FunctionReward", function=f"trl.rewards.{name}")
    return component("ModelReward", path=name)


def vllm(value: Any, given: Given) -> dict[str, Any]:
    """The engine, with log-probs of a training forward."""
    if not value:
        return {}
    if given.get("vllm_mode") == "server":
        host, port = given.get("vllm_server_host"), given.get("vllm_server_port") or 8000
        host = "127.0.0.1" if host in (None, "0.0.0.0") else host  # noqa: S104
        url = given.get("vllm_server_base_url") or f"http://{host}:{port}"
        engine = component("VLLMServerEngine", urls=url)
    else:
        share = given.get("vllm_gpu_memory_utilization") or 0.3
        length = given.get("vllm_max_model_length")
        engine = component("VLLMEngine", gpu_memory_utilization=share, max_model_len=length)
    return {"model.engine": engine, "model.recompute_logprobs": True}
