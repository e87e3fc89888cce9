"""TRL's options and ours: the one table that `lit-rlhf from-trl` and docs/howto/from_trl.md go by.

The names and defaults are those of TRL 1.16.0, of PPOConfig those of 1.12.0, the last release that has it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lit_rlhf.cli import trl_rules as rules

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
    rule: rules.Rule | None = None
    note: str = ""
    default: Any = UNSET


def same(*ours: str, note: str = "", default: Any = UNSET) -> Option:
    """The same value under our name, or under several."""
    return Option(", ".join(f"`{each}`" for each in ours), rules.copied(*ours), note, default)


def one_of(
    ours: str,
    values: str | Mapping[Any, Any],
    otherwise: str = "",
    note: str = "",
    default: Any = UNSET,
) -> Option:
    """One of a few values, each with its own counterpart; those of a text are the same here."""
    table = {name: name for name in values.split()} if isinstance(values, str) else values
    return Option(f"`{ours}`", rules.looked_up(ours, table, otherwise), note, default)


def whole_number(ours: str, otherwise: str) -> Option:
    """The same whole number under our name."""
    return Option(f"`{ours}`", rules.whole(ours, otherwise))


def made(ours: str, make: Callable[[Any], Any], default: Any = UNSET) -> Option:
    """What is made of the value, under our name."""
    return Option(f"`{ours}`", lambda value, _: {ours: make(value)}, "", default)


def of_lora(name: str, note: str = "", default: Any = UNSET, *, policy: bool = False) -> Option:
    """An option of LoRA under our name."""
    return Option(f"`model.backbone.lora.{name}`", rules.lora(name, policy), note, default)


def read_with(name: str, default: Any = UNSET, ours: str = "") -> Option:
    """Read by another's rule."""
    return Option(ours or f"with `{name}`", rules.untouched, "", default)


def none(names: str, why: str) -> dict[str, Option]:
    """Options that we lack, for one reason."""
    return {name: Option(note=why) for name in names.split()}


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


EVERY = "every_n_iterations"
_CHECKPOINT = "trainer.callbacks.IterationCheckpoint"

COMMON: dict[str, Option] = {
    # -- model
    "model_name_or_path": same("model.backbone.name", "data.tokenizer"),
    "model_revision": same("model.backbone.revision", "data.tokenizer_revision"),
    "trust_remote_code": same("model.backbone.trust_remote_code", "data.trust_remote_code"),
    "dtype": one_of("model.backbone.dtype", "auto float32 bfloat16 float16", "It is auto, float32, bfloat16 or float16 here.",
                    "Of the base's weights; adapters and heads stay float32. `auto` is what the device multiplies, not the file's."),
    "attn_implementation": one_of("model.backbone.attention", "sdpa eager flash_attention_2",
                                  "It is sdpa, eager or flash_attention_2 here."),
    "gradient_checkpointing": same("model.backbone.gradient_checkpointing", note="TRL's default is true; here false."),
    "use_peft": Option("`model.backbone.lora`", rules.untouched, "Without it every weight is trained, in float32."),
    "lora_r": of_lora("rank", default=16),
    "lora_alpha": of_lora("alpha", default=32),
    "lora_dropout": of_lora("dropout", "0 in policies."),
    "lora_target_modules": of_lora(
        "target_modules", "Unset, TRL adapts the few layers that peft has on its list; here it is every linear layer."),
    "lora_task_type": read_with("use_peft", ours="always that of the task"),
    "use_rslora": of_lora("rslora"),
    "load_in_4bit": Option("`model.backbone.quantization`", rules.quantization, "nf4 or fp4."),
    "load_in_8bit": Option("`model.backbone.quantization`", rules.quantization, "int8."),
    "bnb_4bit_quant_type": read_with("load_in_4bit"),
    **none(
        "use_bnb_nested_quant bnb_4bit_use_double_quant bnb_4bit_quant_storage bnb_4bit_compute_dtype",
        "Products with 4 bits are in `model.backbone.dtype`; the scales are not quantized again.",
    ),
    **none("use_dora lora_target_parameters", "Adapters are LoRA on linear layers."),
    **none("lora_modules_to_save", "Heads are trained and saved by themselves."),
    **none("model_init_kwargs", "Its entries have options of their own in `model.backbone`."),
    **none(
        "router_aux_loss_coef", "The balance loss of mixtures of experts is not part of any loss."
    ),
    **none("disable_dropout", "The base's dropout is always off; adapters have `lora.dropout`."),
    **none("chat_template_path eos_token pad_token", "They are the tokenizer's: save one that has them, and name it in "
            "`data.tokenizer`."),
    **none("cast_lm_head_to_fp32", "Log-probs are computed in float32 from the head's products."),
    # -- data
    "dataset_name": Option("`data.train`", rules.untouched, "A file becomes a `FileSource`, any other name a `HubSource`."),
    "dataset_config": read_with("dataset_name", ours="`data.train.config`"),
    "dataset_train_split": read_with("dataset_name", ours="`data.train.split`"),
    "dataset_test_split": read_with("eval_strategy", ours="`data.val`, where the script evaluates"),
    **none("dataset_streaming", "Rows are tokenized once and kept in a cache; nothing is streamed."),
    **none("datasets", "Set `data.train` to a `Mixture` with a portion for each: see Data formats, Sources."),
    **none("dataset_num_proc dataset_kwargs", "Tokens are cached: `data.cache_dir`."),
    "pad_to_multiple_of": whole_number("data.pad_to_multiple_of", "Ours is a whole number; 1 pads to the longest row."),
    "per_device_train_batch_size": same("data.batch_size", default=8),
    "gradient_accumulation_steps": same("trainer.accumulate_grad_batches", default=1),
    "per_device_eval_batch_size": same("data.eval_batch_size"),
    "dataloader_num_workers": same("data.num_workers"),
    "dataloader_drop_last": same("data.drop_last"),
    "data_seed": same("data.seed"),
    **none("dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor", "Lightning's loaders: tokens are small, and read from a cache."),
    **none("remove_unused_columns label_names", "Columns that nothing reads cost nothing."),
    **none("group_by_length length_column_name train_sampling_strategy shuffle_dataset", "Rows are shuffled by `data.seed`, and "
            "batched with others of like length: `data.bucket_batches`."),
    **none("padding_free packing packing_strategy eval_packing", "Rows aren't packed: branches of a prompt share it, and batches "
            "hold rows of like length."),
    # -- steps
    "learning_rate": same("model.optimizer.lr"),
    "optim": Option("`model.optimizer`", rules.optimizer),
    "weight_decay": same("model.optimizer.weight_decay", note="Biases and norms never decay.", default=0.0),
    "adam_beta1": Option("`model.optimizer.betas`", rules.betas, default=0.9),
    "adam_beta2": Option("`model.optimizer.betas`", rules.betas, default=0.999),
    "adam_epsilon": same("model.optimizer.eps"),
    **none("optim_args optim_target_modules", "Give `model.optimizer` its options by name."),
    "lr_scheduler_type": Option("`model.lr_scheduler`", rules.schedule, "Those of decay need the number of steps.", "linear"),
    "warmup_steps": read_with("lr_scheduler_type"),
    "warmup_ratio": read_with("lr_scheduler_type"),
    **none("lr_scheduler_kwargs", "Give `model.lr_scheduler` its options by name."),
    "max_grad_norm": same("trainer.gradient_clip_val", default=1.0),
    "num_train_epochs": Option("`trainer.max_epochs`", rules.epochs, default=3.0),
    "max_prompt_length": same("data.max_prompt_length", note="Of earlier releases."),
    "max_steps": Option("`steps` of the callback `StopAfter`", rules.max_steps),
    **none("label_smoothing_factor neftune_noise_alpha", "The model trains on its own inputs and labels."),
    # -- the run
    "output_dir": same("run_dir"),
    "seed": same("seed_everything", "model.seed"),
    "full_determinism": same("trainer.deterministic"),
    "bf16": Option("`trainer.precision`", rules.precision,
                   "Or keep 32-true, and give the frozen base `model.backbone.dtype: bfloat16`, which is faster."),
    "fp16": Option("`trainer.precision`", rules.precision),
    "use_cpu": one_of("trainer.accelerator", {True: "cpu", False: "auto"}),
    "logging_steps": whole_number("trainer.log_every_n_steps", "It is a whole number of steps here."),
    "report_to": Option("`trainer.logger`", rules.logger),
    **none("run_name project logging_dir", "Names belong to the logger: give `trainer.logger` its options."),
    **none("logging_strategy logging_first_step disable_tqdm log_level", "`metrics.jsonl` has each step; bar and log are "
            "`PhaseProgressBar` and `trainer.logger`."),
    "save_steps": Option(f"`{EVERY}` of `IterationCheckpoint`", rules.whole(f"{_CHECKPOINT}.{EVERY}", "A share of the run is no number of iterations: set `every_n_iterations` of it."),
                         "Training batches; of policies rollouts with all their updates."),
    "save_total_limit": Option("`keep_last` of `IterationCheckpoint`", rules.whole(f"{_CHECKPOINT}.keep_last", "It keeps 1 or more.")),
    **none("save_strategy save_only_model", "`IterationCheckpoint` saves whole states, so that a resumed run goes on exactly."),
    "eval_steps": Option("`trainer.val_check_interval`", rules.evaluation, "Ours counts batches; TRL's optimizer steps."),
    "eval_strategy": read_with("eval_steps", ours="`data.val`, or `data.val_fraction`, say whether"),
    "do_eval": read_with("eval_strategy"),
    **none("eval_on_start", "`trainer.num_sanity_val_steps: -1` goes through all of it at the start."),
    **none("load_best_model_at_end metric_for_best_model greater_is_better", "Lightning's `ModelCheckpoint(monitor=...)` keeps the "
            "best; `lit-rlhf export` makes a model of it."),
    **none("resume_from_checkpoint", "Give `--ckpt_path last` with this configuration; TRL's checkpoints can't be read."),
    **none("push_to_hub hub_model_id hub_token hub_strategy hub_private_repo", "Nothing is uploaded in training: "
            "`ExportModel` writes a directory that may be."),
    **none("deepspeed fsdp fsdp_config accelerator_config parallelism_config ddp_find_unused_parameters ddp_timeout", "Processes are the "
            "trainer's: `trainer.devices`, and the overlays ddp, fsdp2 and deepspeed."),
    **none("torch_compile tf32 use_liger_kernel activation_offloading torch_empty_cache_steps", "Speed and memory: "
            "`model.backbone.kernels` and `attention`; the head is computed in pieces always."),
    **none("gradient_checkpointing_kwargs", "`model.backbone.gradient_checkpointing` recomputes whole layers."),
    **none("ignore_bias_buffers auto_find_batch_size", "Not needed: set `data.batch_size`."),
}  # fmt: skip
"""Options of TrainingArguments that people set, of ModelConfig and of ScriptArguments."""

_LENGTHS = {
    "max_length": same("data.max_prompt_length", "data.max_completion_length",
                       note="TRL bounds both together; here each has its limit.", default=1024),
}  # fmt: skip
_ENDS = "Prompts lose their beginning here, completions their end."
_TRUNCATED = {
    **_LENGTHS,
    "truncation_mode": Option("`data.too_long: truncate`", rules.looked_up("data.too_long", {"keep_start": "truncate"}, _ENDS),
                              _ENDS, "keep_start"),
}  # fmt: skip
_MOVING = {
    "sync_ref_model": Option("the callback `MovingReference`", rules.moving_reference),
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
    "max_steps": Option("`steps` of the callback `StopAfter`", rules.max_steps, "A policy finishes the iteration that reaches them."),
    "lora_dropout": of_lora("dropout", "It must be 0 in a policy.", policy=True),
    "missing_eos_penalty": same("model.missing_eos_penalty", note="Taken from the score of a completion that was cut."),
    "temperature": same("model.sampling.temperature"),
    **none("ds3_gather_for_generation", "DeepSpeed 3 isn't for policies here; see Several processes."),
}  # fmt: skip
_SAMPLED = {
    **{name: option for name, option in _POLICY.items() if name != "missing_eos_penalty"},
    "temperature": same("model.sampling.temperature", default=1.0),
    "per_device_train_batch_size": Option("`data.batch_size`, `model.updates.minibatches`", rules.group_batch,
                                          "TRL counts completions, here it is prompts.", 8),
    "gradient_accumulation_steps": Option("with `per_device_train_batch_size`", rules.untouched,
                                          "Memory is bounded by `model.updates.microbatch_tokens`.", 1),
    "steps_per_generation": read_with("per_device_train_batch_size"),
    "generation_batch_size": read_with("per_device_train_batch_size"),
    "max_completion_length": same("model.sampling.max_new_tokens", default=512),
    "num_iterations": same("model.updates.epochs", default=1),
    "reward_funcs": Option("`model.reward`", rules.rewards, "TRL's functions work as they are, in `FunctionReward`."),
    "reward_model_name_or_path": same("model.reward.path"),
    "reward_weights": read_with("reward_funcs", ours="`weights` of a `WeightedSum`"),
    "top_p": Option("`model.eval_sampling.top_p`", rules.sampled_whole(1.0), "Not in training."),
    "top_k": Option("`model.eval_sampling.top_k`", rules.sampled_whole(0), "Not in training."),
    **none("min_p repetition_penalty generation_kwargs", "Rollouts come from the whole distribution, whose log-probs the loss uses."),
    **none("num_generations_eval", "Validation draws one completion of each prompt."),
    **none("cache_implementation use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
            "The engine has its own cache and batches: `model.engine`."),
    **none("chat_template_kwargs", "The tokenizer's template is used as it is."),
    "use_vllm": Option("`model.engine`", rules.vllm, "With `model.recompute_logprobs: true`; see Rollouts by vLLM."),
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
                                       rules.whole("trainer.callbacks.SampleTable.num_rows", "1 or more.")),
    **_MOVING,
}  # fmt: skip

_NO_PENALTY = {
    "model.missing_eos_penalty": (0.0, "TRL's trainer takes nothing from a cut completion.")
}

TASKS: dict[str, Task] = {
    "SFTConfig": Task("sft/lora", {
        "learning_rate": same("model.optimizer.lr", default=2e-5),
        **_TRUNCATED,
        "loss_type": Option("`SupervisedModule`", rules.step_loss),
        "completion_only_loss": Option(
            "always",
            rules.looked_up("", {}, "The loss is of completions; text without a prompt is one: `data.format: PlainText`."),
            "Text without a prompt is trained on from its first token: `data.format: PlainText`."),
        **none("assistant_only_loss", "The loss is of the completion; turns before it are the prompt."),
        "dataset_text_field": Option("`data.format.text`", lambda value, _: {"data.format": rules.component("PlainText", text=value)}),
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
        "loss_type": Option("`model.loss`", rules.dpo_loss,
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
        "loss_type": Option("`model.loss`", rules.kto_loss, "`KTO` or `UnpairedAPOZero`.", "kto"),
        "desirable_weight": read_with("loss_type", 1.0, "`model.loss.desirable_weight`"),
        "undesirable_weight": read_with("loss_type", 1.0, "`model.loss.undesirable_weight`"),
        **_REFERENCE,
    }, {"data.format": (None, "Found from the rows: a column label, or pairs.")}),
    "PPOConfig": Task("policy/ppo_lora", {
        **_POLICY,
        "learning_rate": same("model.optimizer.lr", default=3e-6),
        "sft_model_path": COMMON["model_name_or_path"],
        "reward_model_path": same("model.reward.path"),
        "per_device_train_batch_size": Option("`data.batch_size`", rules.ppo_batch, "Prompts of an iteration: times the "
                                              "accumulation, times the minibatches.", 8),
        "gradient_accumulation_steps": Option("with `per_device_train_batch_size`", rules.untouched, "Memory is bounded by "
                                              "`model.updates.microbatch_tokens`.", 1),
        "num_mini_batches": same("model.updates.minibatches", default=1),
        "num_ppo_epochs": same("model.updates.epochs", default=4),
        "response_length": same("model.sampling.max_new_tokens", default=53),
        "temperature": same("model.sampling.temperature", default=0.7),
        "stop_token": Option("always", rules.looked_up("", {}, "Completions end at EOS always."), "Completions end at EOS."),
        "stop_token_id": made("model.sampling.stop_token_ids", lambda value: [value] if value is not None else []),
        "missing_eos_penalty": made("model.missing_eos_penalty", lambda value: value or 0.0, None),
        "kl_coef": same("model.kl.coef", default=0.05),
        "kl_estimator": Option("always k1", rules.looked_up("", {}, "The penalty in the reward is k1, which is exact in expectation."),
                               "The penalty in the reward is k1, which is exact in expectation."),
        "cliprange": made("model.surrogate", lambda value: rules.component("ClippedSurrogate", low=value, high=value), 0.2),
        "vf_coef": same("model.value_loss.coef", default=0.1),
        "cliprange_value": same("model.value_loss.clip", default=0.2),
        "gamma": same("model.gae.gamma", default=1.0),
        "lam": same("model.gae.lam", default=0.95),
        **none("whiten_rewards", "Advantages are whitened, rewards not; `NormalizedReward` scales scores."),
        "total_episodes": Option("`iterations` of the callback `StopAfter`", rules.episodes, "In whole batches of prompts."),
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
        "epsilon": Option("`model.surrogate`", rules.clip, "`ClippedSurrogate`, `SequenceClipped` or `WeightClipped`.", 0.2),
        **none("log_completions_hub_repo", "Nothing is uploaded: `SampleTable` writes samples.jsonl."),
        "epsilon_high": read_with("epsilon"),
        "delta": read_with("epsilon", ours="`dual` of `ClippedSurrogate`"),
        "importance_sampling_level": read_with("epsilon", ours="sequence: `SequenceClipped`"),
        "loss_type": Option("`model.reduction`", rules.grpo_reduction, "`cispo` is a surrogate; `sapo`, `vespo`, `luspo` are lacking.", "dapo"),
        "scale_rewards": Option("`model.advantage`", rules.scaled, default="group"),
        "use_bias_correction_kl": one_of("model.kl_loss", {True: rules.component("UnbiasedK3"), False: rules.component("BiasedK3")}, "",
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
        "epsilon": Option("`model.surrogate`", rules.clip, "Ours clips each token, TRL the sequence: the same in an iteration of one step.", 0.2),
        "epsilon_high": read_with("epsilon"),
        "normalize_advantages": Option("`model.advantage`", rules.whitened),
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
