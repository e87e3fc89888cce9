"""TRL's options and ours: the one table that `lit-rlhf from-trl` and docs/howto/from_trl.md go by.

The names and defaults are those of TRL 1.16.0, of PPOConfig those of 1.12.0, the last release that has it.
"""

# ruff: noqa: E501  (a table: a row is a line)

from typing import Any, NamedTuple

from lit_rlhf.cli.trl_rules import (
    Rule,
    betas,
    clip,
    component,
    copied,
    dpo_loss,
    evaluation,
    group_batch,
    grpo_reduction,
    kto_loss,
    logger,
    looked_up,
    lora,
    moving_reference,
    optimizer,
    ppo_batch,
    quantization,
    rewards,
    sampled_whole,
    save_steps,
    scaled,
    schedule,
    step_loss,
    untouched,
    vllm,
    whitened,
    whole,
)

UNSET: Any = object()
"""A default of TRL that isn't carried over: the recipe's holds."""


class Option(NamedTuple):
    """What becomes of an option of TRL: ours, or the sentence why there is none.

    Attributes:
        ours: Our options as the page names them; empty where there is none.
        rule: From values to values; None where there is none.
        note: Why there is none, or how ours differs.
        default: TRL's default, carried over where a script doesn't set the option.
    """

    ours: str = ""
    rule: Rule | None = None
    note: str = ""
    default: Any = UNSET


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


def _same(ours: str, note: str = "", default: Any = UNSET) -> Option:
    return Option(f"`{ours}`", copied(ours), note, default)


def _with(name: str, default: Any = UNSET, ours: str = "") -> Option:
    """Read by another's rule."""
    return Option(ours or f"with `{name}`", untouched, "", default)


def _none(names: str, why: str) -> dict[str, Option]:
    return {name: Option(note=why) for name in names.split()}


_EVERY = "every_n_iterations"
_CHECKPOINT = "trainer.callbacks.IterationCheckpoint"

COMMON: dict[str, Option] = {
    # -- model -----------------------------------------------------------------------------------------------------------
    "model_name_or_path": Option(
        "`model.backbone.name`, `data.tokenizer`", copied("model.backbone.name", "data.tokenizer")
    ),
    "model_revision": Option(
        "`model.backbone.revision`, `data.tokenizer_revision`",
        copied("model.backbone.revision", "data.tokenizer_revision"),
    ),
    "trust_remote_code": Option(
        "`model.backbone.trust_remote_code`, `data.trust_remote_code`",
        copied("model.backbone.trust_remote_code", "data.trust_remote_code"),
    ),
    "dtype": Option(
        "`model.backbone.dtype`",
        looked_up(
            "model.backbone.dtype",
            {name: name for name in ("auto", "float32", "bfloat16", "float16")},
            "It is auto, float32, bfloat16 or float16 here.",
        ),
        "Of the base's weights; adapters and heads stay float32. `auto` is what the device multiplies, not the file's.",
    ),
    "attn_implementation": Option(
        "`model.backbone.attention`",
        looked_up(
            "model.backbone.attention",
            {name: name for name in ("sdpa", "eager", "flash_attention_2")},
            "It is sdpa, eager or flash_attention_2 here.",
        ),
    ),
    "gradient_checkpointing": _same(
        "model.backbone.gradient_checkpointing", "TRL's default is true; here false."
    ),
    "use_peft": Option(
        "`model.backbone.lora`",
        untouched,
        "Without it every weight is trained, in float32.",
    ),
    "lora_r": Option("`model.backbone.lora.rank`", lora("rank"), default=16),
    "lora_alpha": Option("`model.backbone.lora.alpha`", lora("alpha"), default=32),
    "lora_dropout": Option("`model.backbone.lora.dropout`", lora("dropout"), "0 in policies."),
    "lora_target_modules": Option(
        "`model.backbone.lora.target_modules`",
        lora("target_modules"),
        "Unset, TRL adapts the few layers that peft has on its list; here it is every linear layer.",
    ),
    "use_rslora": Option("`model.backbone.lora.rslora`", lora("rslora")),
    "load_in_4bit": Option("`model.backbone.quantization`", quantization, "nf4 or fp4."),
    "load_in_8bit": Option(
        "`model.backbone.quantization`",
        looked_up("model.backbone.quantization", {True: "int8", False: "none"}, ""),
        "int8.",
    ),
    "bnb_4bit_quant_type": _with("load_in_4bit"),
    **_none(
        "use_bnb_nested_quant bnb_4bit_quant_storage bnb_4bit_compute_dtype",
        "Products with 4 bits are in `model.backbone.dtype`; the scales are not quantized again.",
    ),
    **_none("use_dora lora_target_parameters", "Adapters are LoRA on linear layers."),
    **_none("lora_modules_to_save lora_task_type", "Heads are trained and saved by themselves."),
    **_none("model_init_kwargs", "Its entries have options of their own in `model.backbone`."),
    **_none(
        "router_aux_loss_coef", "The balance loss of mixtures of experts is not part of any loss."
    ),
    **_none("disable_dropout", "The base's dropout is always off; adapters have `lora.dropout`."),
    **_none("chat_template_path eos_token pad_token", "They are the tokenizer's: save one that has them, and name it in "
            "`data.tokenizer`."),
    **_none("cast_lm_head_to_fp32", "Log-probs are computed in float32 from the head's products."),
    # -- data ------------------------------------------------------------------------------------------------------------
    "dataset_name": Option(
        "`data.train`", untouched, "A file becomes a `FileSource`, any other name a `HubSource`."
    ),
    "dataset_config": _with("dataset_name", ours="`data.train.config`"),
    "dataset_train_split": _with("dataset_name", ours="`data.train.split`"),
    "dataset_test_split": _with(
        "eval_strategy", ours="`data.val`, where the script evaluates"
    ),
    **_none("dataset_streaming", "Rows are tokenized once and kept in a cache; nothing is streamed."),
    **_none("datasets", "A mixture of data sets is a `Source` of your own: see Your own data."),
    **_none("dataset_num_proc dataset_kwargs", "Tokens are cached: `data.cache_dir`."),
    "pad_to_multiple_of": Option(
        "`data.pad_to_multiple_of`",
        whole("data.pad_to_multiple_of", "Ours is a whole number; 1 pads to the longest row."),
    ),
    "per_device_train_batch_size": _same("data.batch_size", default=8),
    "gradient_accumulation_steps": _same("trainer.accumulate_grad_batches", default=1),
    "per_device_eval_batch_size": _same("data.eval_batch_size"),
    "dataloader_num_workers": _same("data.num_workers"),
    "dataloader_drop_last": _same("data.drop_last"),
    "data_seed": _same("data.seed"),
    **_none("dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor", "Lightning's loaders: tokens are small, and read from a cache."),
    **_none("remove_unused_columns label_names", "Columns that nothing reads cost nothing."),
    **_none("group_by_length length_column_name train_sampling_strategy shuffle_dataset", "Rows are shuffled by `data.seed`, and "
            "batched with others of like length: `data.bucket_batches`."),
    **_none("padding_free packing packing_strategy eval_packing", "Rows aren't packed: branches of a prompt share it, and batches "
            "hold rows of like length."),
    # -- steps -----------------------------------------------------------------------------------------------------------
    "learning_rate": _same("model.optimizer.lr"),
    "optim": Option("`model.optimizer`", optimizer),
    "weight_decay": _same("model.optimizer.weight_decay", "Biases and norms never decay.", 0.0),
    "adam_beta1": Option("`model.optimizer.betas`", betas, default=0.9),
    "adam_beta2": Option("`model.optimizer.betas`", betas, default=0.999),
    "adam_epsilon": _same("model.optimizer.eps"),
    **_none("optim_args optim_target_modules", "Give `model.optimizer` its options by name."),
    "lr_scheduler_type": Option(
        "`model.lr_scheduler`", schedule, "Those of decay need the number of steps.", "linear"
    ),
    "warmup_steps": _with("lr_scheduler_type"),
    "warmup_ratio": _with("lr_scheduler_type"),
    **_none("lr_scheduler_kwargs", "Give `model.lr_scheduler` its options by name."),
    "max_grad_norm": _same("trainer.gradient_clip_val", default=1.0),
    "num_train_epochs": Option(
        "`trainer.max_epochs`",
        whole("trainer.max_epochs", "Epochs are whole: `trainer.limit_train_batches` is a share of one."),
        default=3.0,
    ),
    "max_steps": Option(
        "`trainer.max_steps`",
        whole("trainer.max_steps", "Below 1 it bounds nothing, here as there."),
    ),
    **_none("label_smoothing_factor neftune_noise_alpha", "The model trains on its own inputs and labels."),
    # -- the run ---------------------------------------------------------------------------------------------------------
    "output_dir": _same("run_dir"),
    "seed": Option("`seed_everything`, `model.seed`", copied("seed_everything", "model.seed")),
    "full_determinism": _same("trainer.deterministic"),
    "bf16": Option(
        "`trainer.precision`",
        looked_up("trainer.precision", {True: "bf16-mixed", False: "32-true"}, ""),
        "Or keep 32-true, and give the frozen base `model.backbone.dtype: bfloat16`, which is faster.",
    ),
    "fp16": Option(
        "`trainer.precision`", looked_up("trainer.precision", {True: "16-mixed", False: "32-true"}, "")
    ),
    "use_cpu": Option(
        "`trainer.accelerator`", looked_up("trainer.accelerator", {True: "cpu", False: "auto"}, "")
    ),
    "logging_steps": Option(
        "`trainer.log_every_n_steps`",
        whole("trainer.log_every_n_steps", "It is a whole number of steps here."),
    ),
    "report_to": Option("`trainer.logger`", logger),
    **_none("run_name project logging_dir", "Names belong to the logger: give `trainer.logger` its options."),
    **_none("logging_strategy logging_first_step disable_tqdm log_level", "`metrics.jsonl` has each step; bar and log are "
            "`PhaseProgressBar` and `trainer.logger`."),
    "save_steps": Option(f"`{_EVERY}` of `IterationCheckpoint`", save_steps(f"{_CHECKPOINT}.{_EVERY}"),
                         "Training batches; of policies rollouts with all their updates."),
    "save_total_limit": Option("`keep_last` of `IterationCheckpoint`", whole(f"{_CHECKPOINT}.keep_last", "It keeps 1 or more.")),
    **_none("save_strategy save_only_model", "`IterationCheckpoint` saves whole states, so that a resumed run goes on exactly."),
    "eval_steps": Option(
        "`trainer.val_check_interval`", evaluation, "Ours counts batches; TRL's optimizer steps."
    ),
    "eval_strategy": _with("eval_steps", ours="`data.val`, or `data.val_fraction`, say whether"),
    "do_eval": _with("eval_strategy"),
    **_none("eval_on_start", "`trainer.num_sanity_val_steps: -1` goes through all of it at the start."),
    **_none("load_best_model_at_end metric_for_best_model greater_is_better", "Lightning's `ModelCheckpoint(monitor=...)` keeps the "
            "best; `lit-rlhf export` makes a model of it."),
    **_none("resume_from_checkpoint", "Give `--ckpt_path last` with this configuration; TRL's checkpoints can't be read."),
    **_none("push_to_hub hub_model_id hub_token hub_strategy hub_private_repo", "Nothing is uploaded in training: "
            "`ExportModel` writes a directory that may be."),
    **_none("deepspeed fsdp fsdp_config accelerator_config parallelism_config ddp_find_unused_parameters ddp_timeout", "Processes are the "
            "trainer's: `trainer.devices`, and the overlays ddp, fsdp2 and deepspeed."),
    **_none("torch_compile tf32 use_liger_kernel activation_offloading torch_empty_cache_steps", "Speed and memory: "
            "`model.backbone.kernels` and `attention`; the head is computed in pieces always."),
    **_none("gradient_checkpointing_kwargs", "`model.backbone.gradient_checkpointing` recomputes whole layers."),
    **_none("ignore_bias_buffers auto_find_batch_size", "Not needed: set `data.batch_size`."),
}  # fmt: skip
"""Options of TrainingArguments that people set, of ModelConfig and of ScriptArguments."""

_LENGTHS = {
    "max_length": Option(
        "`data.max_prompt_length`, `data.max_completion_length`",
        copied("data.max_prompt_length", "data.max_completion_length"),
        "TRL bounds both together; here each has its limit.",
        1024,
    ),
}
_TRUNCATED = {
    **_LENGTHS,
    "truncation_mode": Option(
        "`data.too_long: truncate`",
        looked_up(
            "data.too_long",
            {"keep_start": "truncate"},
            "Prompts lose their beginning here, completions their end.",
        ),
        "Prompts lose their beginning here, completions their end.",
        "keep_start",
    ),
}
_MOVING = {
    "sync_ref_model": Option("the callback `MovingReference`", moving_reference),
    "ref_model_mixup_alpha": _with("sync_ref_model", ours="`alpha` of it"),
    "ref_model_sync_steps": _with("sync_ref_model", ours=f"`{_EVERY}` of it"),
}
_REFERENCE = {
    "precompute_ref_log_probs": Option(
        "`model.reference`",
        looked_up("model.reference", {True: "precomputed", False: "auto"}, ""),
        "They are kept in the cache of tokens.",
    ),
    **_none("precompute_ref_batch_size", "Batches of that pass are `data.batch_size`."),
    **_MOVING,
}
_POLICY = {
    "max_grad_norm": _same("model.updates.max_grad_norm", default=1.0),
    "max_steps": Option(note="Policies count iterations: `trainer.limit_train_batches`, one batch of prompts each."),
    "lora_dropout": Option(
        "`model.backbone.lora.dropout`", lora("dropout", policy=True), "It must be 0 in a policy."
    ),
    "missing_eos_penalty": _same(
        "model.missing_eos_penalty", "Taken from the score of a completion that was cut."
    ),
    "temperature": _same("model.sampling.temperature"),
    **_none("ds3_gather_for_generation", "DeepSpeed 3 isn't for policies here; see Several processes."),
}  # fmt: skip
_SAMPLED = {
    **{name: option for name, option in _POLICY.items() if name != "missing_eos_penalty"},
    "temperature": _same("model.sampling.temperature", default=1.0),
    "per_device_train_batch_size": Option(
        "`data.batch_size`, `model.updates.minibatches`", group_batch,
        "TRL counts completions, here it is prompts.", 8,
    ),
    "gradient_accumulation_steps": Option("with `per_device_train_batch_size`", untouched,
                                          "Memory is bounded by `model.updates.microbatch_tokens`.", 1),
    "steps_per_generation": _with("per_device_train_batch_size"),
    "generation_batch_size": _with("per_device_train_batch_size"),
    "max_completion_length": _same("model.sampling.max_new_tokens", default=512),
    "num_iterations": _same("model.updates.epochs", default=1),
    "reward_funcs": Option(
        "`model.reward`", rewards, "TRL's functions work as they are, in `FunctionReward`."
    ),
    "reward_model_name_or_path": _same("model.reward.path"),
    "reward_weights": _with("reward_funcs", ours="`weights` of a `WeightedSum`"),
    "top_p": Option("`model.eval_sampling.top_p`", sampled_whole(1.0), "Not in training."),
    "top_k": Option("`model.eval_sampling.top_k`", sampled_whole(0), "Not in training."),
    **_none("min_p repetition_penalty generation_kwargs", "Rollouts come from the whole distribution, whose log-probs the loss uses."),
    **_none("num_generations_eval", "Validation draws `model.num_samples` as well."),
    **_none("cache_implementation use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
            "The engine has its own cache and batches: `model.engine`."),
    **_none("chat_template_kwargs", "The tokenizer's template is used as it is."),
    "use_vllm": Option("`model.engine`", vllm, "With `model.recompute_logprobs: true`; see Rollouts by vLLM."),
    "vllm_mode": _with("use_vllm", ours="`VLLMEngine` or `VLLMServerEngine`"),
    "vllm_server_base_url": _with("use_vllm", ours="`model.engine.urls`"),
    "vllm_server_host": _with("use_vllm", ours="`model.engine.urls`"),
    "vllm_server_port": _with("use_vllm", ours="`model.engine.urls`"),
    "vllm_gpu_memory_utilization": _with("use_vllm", ours="`model.engine.gpu_memory_utilization`"),
    "vllm_max_model_length": _with("use_vllm", ours="`model.engine.max_model_len`"),
    **_none("vllm_model_impl vllm_enable_sleep_mode vllm_tensor_parallel_size vllm_structured_outputs_regex", "Give vLLM's own options in "
            "`model.engine.options`, or to the server."),
    **_none("vllm_server_timeout vllm_group_port", "`model.engine.timeout` and `wait`; weights go by files, not by a port."),
    **_none("mask_truncated_completions", "Cut completions are trained on; `model.missing_eos_penalty` takes from their score."),
    **_none("log_completions log_multimodal log_unique_prompts log_completions_hub_repo", "`SampleTable` writes samples.jsonl always."),
    "num_completions_to_print": Option("`num_rows` of `SampleTable`",
                                       whole("trainer.callbacks.SampleTable.num_rows", "1 or more.")),
    **_MOVING,
}  # fmt: skip

_NO_PENALTY = {
    "model.missing_eos_penalty": (0.0, "TRL's trainer takes nothing from a cut completion.")
}

TASKS: dict[str, Task] = {
    "SFTConfig": Task("sft/lora", {
        "learning_rate": _same("model.optimizer.lr", default=2e-5),
        **_TRUNCATED,
        "loss_type": Option("`SupervisedModule`", step_loss),
        "completion_only_loss": Option(
            "always",
            looked_up("", {}, "The loss is of completions; text without a prompt is one: `data.format: PlainText`."),
            "Text without a prompt is trained on from its first token: `data.format: PlainText`.",
        ),
        **_none("assistant_only_loss", "The loss is of the completion; turns before it are the prompt."),
        "dataset_text_field": Option(
            "`data.format.text`",
            lambda value, _: {"data.format": component("PlainText", text=value)},
        ),
    }, {}),
    "RewardConfig": Task("reward/lora", {
        "learning_rate": _same("model.optimizer.lr", default=1e-4),
        "max_length": _LENGTHS["max_length"],
        "center_rewards_coefficient": Option(
            "`model.loss.center_coefficient`",
            lambda value, _: {"model.loss.center_coefficient": value or 0.0},
            default=None,
        ),
    }, {}),
    "DPOConfig": Task("preference/dpo_lora", {
        "learning_rate": _same("model.optimizer.lr", default=1e-6),
        **_TRUNCATED,
        "beta": _with("loss_type", 0.1, "`beta` (`tau`, `gamma`) of `model.loss`"),
        "loss_type": Option("`model.loss`", dpo_loss,
                            "A class for each; `bco_pair` has the shift that TRL dropped, `sppo_hard` is half of TRL's.",
                            ["sigmoid"]),
        "loss_weights": _with("loss_type", ours="`weights` of a `WeightedSum`"),
        "label_smoothing": _with("loss_type", ours="`label_smoothing` of `EXO` and `RobustDPO`"),
        "f_divergence_type": _with("loss_type", ours="`ForwardKLDPO`, `JensenShannonDPO`, `AlphaDivergenceDPO`"),
        "f_alpha_divergence_coef": _with("loss_type", ours="`alpha` of `AlphaDivergenceDPO`"),
        "ld_alpha": _with("loss_type", ours="`alpha` of `LengthDesensitizedDPO`"),
        "use_weighting": _with("loss_type", ours="`WPO`"),
        "discopop_tau": _with("loss_type", ours="`temperature` of `DiscoPOP`"),
        **_REFERENCE,
    }, {}),
    "KTOConfig": Task("preference/kto_lora", {
        "learning_rate": _same("model.optimizer.lr", default=1e-6),
        **_LENGTHS,
        "beta": _with("loss_type", 0.1, "`model.loss.beta`"),
        "loss_type": Option("`model.loss`", kto_loss, "`KTO` or `UnpairedAPOZero`.", "kto"),
        "desirable_weight": _with("loss_type", 1.0, "`model.loss.desirable_weight`"),
        "undesirable_weight": _with("loss_type", 1.0, "`model.loss.undesirable_weight`"),
        **_REFERENCE,
    }, {"data.format": (None, "Found from the rows: a column label, or pairs.")}),
    "PPOConfig": Task("policy/ppo_lora", {
        **_POLICY,
        "learning_rate": _same("model.optimizer.lr", default=3e-6),
        "sft_model_path": COMMON["model_name_or_path"],
        "reward_model_path": _same("model.reward.path"),
        "per_device_train_batch_size": Option("`data.batch_size`", ppo_batch, "Prompts of an iteration: times the "
                                              "accumulation, times the minibatches.", 8),
        "gradient_accumulation_steps": Option("with `per_device_train_batch_size`", untouched, "Memory is bounded by "
                                              "`model.updates.microbatch_tokens`.", 1),
        "num_mini_batches": _same("model.updates.minibatches", default=1),
        "num_ppo_epochs": _same("model.updates.epochs", default=4),
        "response_length": _same("model.sampling.max_new_tokens", default=53),
        "temperature": _same("model.sampling.temperature", default=0.7),
        "stop_token": Option("always", looked_up("", {}, "Completions end at EOS always."), "Completions end at EOS."),
        "stop_token_id": Option("`model.sampling.stop_token_ids`",
                                lambda value, _: {"model.sampling.stop_token_ids": [value] if value is not None else []}),
        "missing_eos_penalty": Option("`model.missing_eos_penalty`",
                                      lambda value, _: {"model.missing_eos_penalty": value or 0.0}, default=None),
        "kl_coef": _same("model.kl.coef", default=0.05),
        "kl_estimator": Option("always k1", looked_up("", {}, "The penalty in the reward is k1, which is exact in expectation."),
                               "The penalty in the reward is k1, which is exact in expectation."),
        "cliprange": Option("`model.surrogate`",
                            lambda value, _: {"model.surrogate": component("ClippedSurrogate", low=value, high=value)},
                            default=0.2),
        "vf_coef": _same("model.value_loss.coef", default=0.1),
        "cliprange_value": _same("model.value_loss.clip", default=0.2),
        "gamma": _same("model.gae.gamma", default=1.0),
        "lam": _same("model.gae.lam", default=0.95),
        **_none("whiten_rewards", "Advantages are whitened, rewards not; `NormalizedReward` scales scores."),
        **_none("total_episodes", "Policies count iterations: `trainer.limit_train_batches` (batches of prompts) and `trainer.max_epochs`."),
        **_none("num_sample_generations", "`SampleTable` writes samples of each iteration."),
        **_none("local_rollout_forward_batch_size", "Forwards are bounded by `model.updates.microbatch_tokens`."),
        **_none("world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size",
                "TRL computes it from other options."),
        **_none("model_adapter_name ref_adapter_name", "The policy's adapter and the reference are roles of one base."),
    }, {}),
    "GRPOConfig": Task("policy/grpo_lora", {
        **_SAMPLED,
        "learning_rate": _same("model.optimizer.lr", default=1e-6),
        "num_generations": _same("model.num_samples", default=8),
        "beta": _same("model.kl.coef", default=0.0),
        "epsilon": Option("`model.surrogate`", clip, "`ClippedSurrogate`, `SequenceClipped` or `WeightClipped`.", 0.2),
        "epsilon_high": _with("epsilon"),
        "delta": _with("epsilon", ours="`dual` of `ClippedSurrogate`"),
        "importance_sampling_level": _with("epsilon", ours="sequence: `SequenceClipped`"),
        "loss_type": Option("`model.reduction`", grpo_reduction, "`cispo` is a surrogate; `sapo`, `vespo`, `luspo` are lacking.", "dapo"),
        "scale_rewards": Option("`model.advantage`", scaled, default="group"),
        "use_bias_correction_kl": Option("`model.kl_loss`", looked_up("model.kl_loss", {True: component("UnbiasedK3"),
                                         False: component("BiasedK3")}, ""),
                                         "`UnbiasedK3` weighs with the ratio of all tokens so far, TRL with the token's own.", True),
        **_none("multi_objective_aggregation", "Rewards are summed, then normalised."),
        **_none("sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg",
                "SAPO and VESPO are not here."),
        **_none("top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
                "Group methods have no term of entropy; `CollapseGuard` watches it."),
        **_none("max_tool_calling_iterations", "Completions are one turn, without tools."),
        **_none("vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
                "vllm_importance_sampling_clip_min vllm_importance_sampling_cap",
                "Set `model.importance_correction` to `TruncatedImportance` or `MaskedImportance`, per token."),
        **_none("off_policy_mask_threshold", "`model.updates.target_kl` ends an iteration whose policy went too far."),
    }, _NO_PENALTY),
    "RLOOConfig": Task("policy/rloo_lora", {
        **_SAMPLED,
        "learning_rate": _same("model.optimizer.lr", default=1e-6),
        "num_generations": _same("model.num_samples", default=2),
        "beta": _same("model.kl.coef", default=0.05),
        "epsilon": Option("`model.surrogate`", clip, "Ours clips each token, TRL the sequence: the same in an iteration of one step.", 0.2),
        "epsilon_high": _with("epsilon"),
        "normalize_advantages": Option("`model.advantage`", whitened),
        **_none("reward_clip_range", "`NormalizedReward` scales and clips by what it has seen."),
    }, _NO_PENALTY),
}  # fmt: skip
"""The seven configuration classes."""

ALIASES = {
    "model_id": "model_name_or_path",
    "torch_dtype": "dtype",
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
