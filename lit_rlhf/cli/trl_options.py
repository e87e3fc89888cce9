"""TRL's options and ours: the one table that `lit-rlhf from-trl` and docs/howto/from_trl.md go by.

The names and defaults are those of TRL 1.16.0, of PPOConfig those of 1.12.0, the last release that has it.
"""

from typing import Any, NamedTuple

from lit_rlhf.cli.trl_common import (
    COMMON,
    EVERY,
    UNSET,
    Option,
    made,
    none,
    of_lora,
    one_of,
    read_with,
    same,
)
from lit_rlhf.cli.trl_rules import (
    clip,
    component,
    dpo_loss,
    episodes,
    group_batch,
    grpo_reduction,
    kto_loss,
    looked_up,
    max_steps,
    moving_reference,
    ppo_batch,
    rewards,
    sampled_whole,
    scaled,
    step_loss,
    untouched,
    vllm,
    whitened,
    whole,
)


class Task(NamedTuple):
    """A configuration class of TRL: the shipped recipe it starts from, and its own options.

    Attributes:
        recipe: With LoRA.
        options: By TRL's name; they go before those that all have.
        fixed: What its trainer does without an option for it: our option, value and sentence.
    """

    recipe: str
    options: dict[str, Option]
    fixed: dict[str, tuple[Any, str]]


_LENGTHS = {
    "max_length": same("data.max_prompt_length", "data.max_completion_length",
                       note="TRL bounds both together; here each has its limit.", default=1024),
}  # fmt: skip
_ENDS = "Prompts lose their beginning here, completions their end."
_TRUNCATED = {
    **_LENGTHS,
    "truncation_mode": Option("`data.too_long: truncate`", looked_up("data.too_long", {"keep_start": "truncate"}, _ENDS),
                              _ENDS, "keep_start"),
}  # fmt: skip
_MOVING = {
    "sync_ref_model": Option("the callback `MovingReference`", moving_reference),
    "ref_model_mixup_alpha": read_with("sync_ref_model", ours="`alpha` of it"),
    "ref_model_sync_steps": read_with("sync_ref_model", ours=f"`{EVERY}` of it"),
}
_REFERENCE = {
    "precompute_ref_log_probs": one_of("model.reference", {True: "precomputed", False: "auto"},
                                       note="They are kept in the cache of tokens."),
    **none("precompute_ref_batch_size", "Batches of that pass are `data.batch_size`."),
    **_MOVING,
}  # fmt: skip
_POLICY = {
    "max_grad_norm": same("model.updates.max_grad_norm", default=1.0),
    "max_steps": Option("`steps` of the callback `StopAfter`", max_steps, "A policy finishes the iteration that reaches them."),
    "lora_dropout": of_lora("dropout", "It must be 0 in a policy.", policy=True),
    "missing_eos_penalty": same("model.missing_eos_penalty", note="Taken from the score of a completion that was cut."),
    "temperature": same("model.sampling.temperature"),
    **none("ds3_gather_for_generation", "DeepSpeed 3 isn't for policies here; see Several processes."),
}  # fmt: skip
_SAMPLED = {
    **{name: option for name, option in _POLICY.items() if name != "missing_eos_penalty"},
    "temperature": same("model.sampling.temperature", default=1.0),
    "per_device_train_batch_size": Option("`data.batch_size`, `model.updates.minibatches`", group_batch,
                                          "TRL counts completions, here it is prompts.", 8),
    "gradient_accumulation_steps": Option("with `per_device_train_batch_size`", untouched,
                                          "Memory is bounded by `model.updates.microbatch_tokens`.", 1),
    "steps_per_generation": read_with("per_device_train_batch_size"),
    "generation_batch_size": read_with("per_device_train_batch_size"),
    "max_completion_length": same("model.sampling.max_new_tokens", default=512),
    "num_iterations": same("model.updates.epochs", default=1),
    "reward_funcs": Option("`model.reward`", rewards, "TRL's functions work as they are, in `FunctionReward`."),
    "reward_model_name_or_path": same("model.reward.path"),
    "reward_weights": read_with("reward_funcs", ours="`weights` of a `WeightedSum`"),
    "top_p": Option("`model.eval_sampling.top_p`", sampled_whole(1.0), "Not in training."),
    "top_k": Option("`model.eval_sampling.top_k`", sampled_whole(0), "Not in training."),
    **none("min_p repetition_penalty generation_kwargs", "Rollouts come from the whole distribution, whose log-probs the loss uses."),
    **none("num_generations_eval", "Validation draws one completion of each prompt."),
    **none("cache_implementation use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
            "The engine has its own cache and batches: `model.engine`."),
    **none("chat_template_kwargs", "The tokenizer's template is used as it is."),
    "use_vllm": Option("`model.engine`", vllm, "With `model.recompute_logprobs: true`; see Rollouts by vLLM."),
    "vllm_mode": read_with("use_vllm", ours="`VLLMEngine` or `VLLMServerEngine`"),
    "vllm_server_base_url": read_with("use_vllm", ours="`model.engine.urls`"),
    "vllm_server_host": read_with("use_vllm", ours="`model.engine.urls`"),
    "vllm_server_port": read_with("use_vllm", ours="`model.engine.urls`"),
    "vllm_gpu_memory_utilization": read_with("use_vllm", ours="`model.engine.gpu_memory_utilization`"),
    "vllm_max_model_length": read_with("use_vllm", ours="`model.engine.max_model_len`"),
    **none("vllm_model_impl vllm_enable_sleep_mode vllm_tensor_parallel_size vllm_structured_outputs_regex", "Give vLLM's own options in "
            "`model.engine.options`, or to the server."),
    **none("vllm_server_timeout vllm_group_port", "`model.engine.timeout` and `wait`; `model.engine.sync` brings the weights."),
    "mask_truncated_completions": same("model.mask_truncated", default=False),
    **none("log_completions log_multimodal log_unique_prompts", "`SampleTable` writes samples.jsonl always."),
    "num_completions_to_print": Option("`num_rows` of `SampleTable`",
                                       whole("trainer.callbacks.SampleTable.num_rows", "1 or more.")),
    **_MOVING,
}  # fmt: skip

_NO_PENALTY = {
    "model.missing_eos_penalty": (0.0, "TRL's trainer takes nothing from a cut completion.")
}

TASKS: dict[str, Task] = {
    "SFTConfig": Task("sft/lora", {
        "learning_rate": same("model.optimizer.lr", default=2e-5),
        **_TRUNCATED,
        "loss_type": Option("`SupervisedModule`", step_loss),
        "completion_only_loss": Option(
            "always",
            looked_up("", {}, "The loss is of completions; text without a prompt is one: `data.format: PlainText`."),
            "Text without a prompt is trained on from its first token: `data.format: PlainText`."),
        **none("assistant_only_loss", "The loss is of the completion; turns before it are the prompt."),
        "dataset_text_field": Option("`data.format.text`", lambda value, _: {"data.format": component("PlainText", text=value)}),
    }, {}),
    "RewardConfig": Task("reward/lora", {
        "learning_rate": same("model.optimizer.lr", default=1e-4),
        "max_length": _LENGTHS["max_length"],
        "center_rewards_coefficient": made("model.loss.center_coefficient", lambda value: value or 0.0, None),
    }, {}),
    "DPOConfig": Task("preference/dpo_lora", {
        "learning_rate": same("model.optimizer.lr", default=1e-6),
        **_TRUNCATED,
        "beta": read_with("loss_type", 0.1, "`beta` (`tau`, `gamma`) of `model.loss`"),
        "loss_type": Option("`model.loss`", dpo_loss,
                            "A class for each; `bco_pair` has the shift that TRL dropped, "
                            "`sppo_hard` is half of TRL's.",
                            ["sigmoid"]),
        "loss_weights": read_with("loss_type", ours="`weights` of a `WeightedSum`"),
        "label_smoothing": read_with("loss_type", ours="`label_smoothing` of `EXO` and `RobustDPO`"),
        "f_divergence_type": read_with("loss_type", ours="`ForwardKLDPO`, `JensenShannonDPO`, `AlphaDivergenceDPO`"),
        "f_alpha_divergence_coef": read_with("loss_type", ours="`alpha` of `AlphaDivergenceDPO`"),
        "ld_alpha": read_with("loss_type", ours="`alpha` of `LengthDesensitizedDPO`"),
        "use_weighting": read_with("loss_type", ours="`WPO`"),
        "discopop_tau": read_with("loss_type", ours="`temperature` of `DiscoPOP`"),
        **_REFERENCE,
    }, {}),
    "KTOConfig": Task("preference/kto_lora", {
        "learning_rate": same("model.optimizer.lr", default=1e-6),
        **_LENGTHS,
        "beta": read_with("loss_type", 0.1, "`model.loss.beta`"),
        "loss_type": Option("`model.loss`", kto_loss, "`KTO` or `UnpairedAPOZero`.", "kto"),
        "desirable_weight": read_with("loss_type", 1.0, "`model.loss.desirable_weight`"),
        "undesirable_weight": read_with("loss_type", 1.0, "`model.loss.undesirable_weight`"),
        **_REFERENCE,
    }, {"data.format": (None, "Found from the rows: a column label, or pairs.")}),
    "PPOConfig": Task("policy/ppo_lora", {
        **_POLICY,
        "learning_rate": same("model.optimizer.lr", default=3e-6),
        "sft_model_path": COMMON["model_name_or_path"],
        "reward_model_path": same("model.reward.path"),
        "per_device_train_batch_size": Option("`data.batch_size`", ppo_batch, "Prompts of an iteration: times the "
                                              "accumulation, times the minibatches.", 8),
        "gradient_accumulation_steps": Option("with `per_device_train_batch_size`", untouched, "Memory is bounded by "
                                              "`model.updates.microbatch_tokens`.", 1),
        "num_mini_batches": same("model.updates.minibatches", default=1),
        "num_ppo_epochs": same("model.updates.epochs", default=4),
        "response_length": same("model.sampling.max_new_tokens", default=53),
        "temperature": same("model.sampling.temperature", default=0.7),
        "stop_token": Option("always", looked_up("", {}, "Completions end at EOS always."), "Completions end at EOS."),
        "stop_token_id": made("model.sampling.stop_token_ids", lambda value: [value] if value is not None else []),
        "missing_eos_penalty": made("model.missing_eos_penalty", lambda value: value or 0.0, None),
        "kl_coef": same("model.kl.coef", default=0.05),
        "kl_estimator": Option("always k1", looked_up("", {}, "The penalty in the reward is k1, which is exact in expectation."),
                               "The penalty in the reward is k1, which is exact in expectation."),
        "cliprange": made("model.surrogate", lambda value: component("ClippedSurrogate", low=value, high=value), 0.2),
        "vf_coef": same("model.value_loss.coef", default=0.1),
        "cliprange_value": same("model.value_loss.clip", default=0.2),
        "gamma": same("model.gae.gamma", default=1.0),
        "lam": same("model.gae.lam", default=0.95),
        **none("whiten_rewards", "Advantages are whitened, rewards not; `NormalizedReward` scales scores."),
        "total_episodes": Option("`iterations` of the callback `StopAfter`", episodes, "In whole batches of prompts."),
        **none("max_steps", "TRL's PPO reads `total_episodes` instead."),
        **none("num_sample_generations", "`SampleTable` writes samples of each iteration."),
        **none("local_rollout_forward_batch_size", "Forwards are bounded by `model.updates.microbatch_tokens`."),
        **none("world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size",
                "TRL computes it from other options."),
        **none("model_adapter_name ref_adapter_name", "The policy's adapter and the reference are roles of one base."),
    }, {}),
    "GRPOConfig": Task("policy/grpo_lora", {
        **_SAMPLED,
        "learning_rate": same("model.optimizer.lr", default=1e-6),
        "num_generations": same("model.num_samples", default=8),
        "beta": same("model.kl.coef", default=0.0),
        "epsilon": Option("`model.surrogate`", clip, "`ClippedSurrogate`, `SequenceClipped` or `WeightClipped`.", 0.2),
        **none("log_completions_hub_repo", "Nothing is uploaded: `SampleTable` writes samples.jsonl."),
        "epsilon_high": read_with("epsilon"),
        "delta": read_with("epsilon", ours="`dual` of `ClippedSurrogate`"),
        "importance_sampling_level": read_with("epsilon", ours="sequence: `SequenceClipped`"),
        "loss_type": Option("`model.reduction`", grpo_reduction, "`cispo` is a surrogate; `sapo`, `vespo`, `luspo` are lacking.", "dapo"),
        "scale_rewards": Option("`model.advantage`", scaled, default="group"),
        "use_bias_correction_kl": one_of("model.kl_loss", {True: component("UnbiasedK3"), False: component("BiasedK3")}, "",
                                         "`UnbiasedK3` weighs with the ratio of all tokens so far, TRL with the token's own.", True),
        **none("multi_objective_aggregation", "Rewards are summed, then normalised."),
        **none("sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg",
                "SAPO and VESPO are not here."),
        **none("top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
                "Group methods have no term of entropy; `CollapseGuard` watches it."),
        **none("max_tool_calling_iterations", "Completions are one turn, without tools."),
        **none("vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
                "vllm_importance_sampling_clip_min vllm_importance_sampling_cap",
                "Set `model.importance_correction` to `TruncatedImportance` or `MaskedImportance`, per token."),
        **none("off_policy_mask_threshold", "`model.updates.target_kl` ends an iteration whose policy went too far."),
    }, _NO_PENALTY),
    "RLOOConfig": Task("policy/rloo_lora", {
        **_SAMPLED,
        "learning_rate": same("model.optimizer.lr", default=1e-6),
        "num_generations": same("model.num_samples", default=2),
        "beta": same("model.kl.coef", default=0.05),
        "epsilon": Option("`model.surrogate`", clip, "Ours clips each token, TRL the sequence: the same in an iteration of one step.", 0.2),
        "epsilon_high": read_with("epsilon"),
        "normalize_advantages": Option("`model.advantage`", whitened),
        **none("reward_clip_range", "`NormalizedReward` scales and clips by what it has seen."),
    }, _NO_PENALTY),
}  # fmt: skip
"""The seven configuration classes."""

ALIASES = {
    "model_id": "model_name_or_path",
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
}
"""Older names."""


def option(task: str, name: str) -> Option | None:
    """What becomes of an option of a configuration class."""
    return TASKS[task].options.get(name) or COMMON.get(name)


def defaults(task: str) -> dict[str, Any]:
    """TRL's defaults that hold where nothing else is said."""
    return {
        name: each.default
        for name, each in {**COMMON, **TASKS[task].options}.items()
        if each.default is not UNSET
    }
