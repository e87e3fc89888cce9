"""What becomes of TRL's options that all tasks have; the tasks' own are in `trl_options`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lit_rlhf.cli.trl_rules import (
    Rule,
    betas,
    copied,
    epochs,
    evaluation,
    logger,
    looked_up,
    lora,
    max_steps,
    optimizer,
    precision,
    quantization,
    save_steps,
    schedule,
    untouched,
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


def same(*ours: str, note: str = "", default: Any = UNSET) -> Option:
    """The same value under our name, or under several."""
    return Option(", ".join(f"`{each}`" for each in ours), copied(*ours), note, default)


def one_of(
    ours: str,
    values: str | Mapping[Any, Any],
    otherwise: str = "",
    note: str = "",
    default: Any = UNSET,
) -> Option:
    """One of a few values, each with its own counterpart; those of a text are the same here."""
    table = {name: name for name in values.split()} if isinstance(values, str) else values
    return Option(f"`{ours}`", looked_up(ours, table, otherwise), note, default)


def whole_number(ours: str, otherwise: str) -> Option:
    """The same whole number under our name."""
    return Option(f"`{ours}`", whole(ours, otherwise))


def made(ours: str, make: Callable[[Any], Any], default: Any = UNSET) -> Option:
    """What is made of the value, under our name."""
    return Option(f"`{ours}`", lambda value, _: {ours: make(value)}, "", default)


def of_lora(name: str, note: str = "", default: Any = UNSET, *, policy: bool = False) -> Option:
    """An option of LoRA under our name."""
    return Option(f"`model.backbone.lora.{name}`", lora(name, policy), note, default)


def read_with(name: str, default: Any = UNSET, ours: str = "") -> Option:
    """Read by another's rule."""
    return Option(ours or f"with `{name}`", untouched, "", default)


def none(names: str, why: str) -> dict[str, Option]:
    """Options that we lack, for one reason."""
    return {name: Option(note=why) for name in names.split()}


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
    "use_peft": Option("`model.backbone.lora`", untouched, "Without it every weight is trained, in float32."),
    "lora_r": of_lora("rank", default=16),
    "lora_alpha": of_lora("alpha", default=32),
    "lora_dropout": of_lora("dropout", "0 in policies."),
    "lora_target_modules": of_lora(
        "target_modules", "Unset, TRL adapts the few layers that peft has on its list; here it is every linear layer."),
    "lora_task_type": read_with("use_peft", ours="always that of the task"),
    "use_rslora": of_lora("rslora"),
    "load_in_4bit": Option("`model.backbone.quantization`", quantization, "nf4 or fp4."),
    "load_in_8bit": Option("`model.backbone.quantization`", quantization, "int8."),
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
    "dataset_name": Option("`data.train`", untouched, "A file becomes a `FileSource`, any other name a `HubSource`."),
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
    "optim": Option("`model.optimizer`", optimizer),
    "weight_decay": same("model.optimizer.weight_decay", note="Biases and norms never decay.", default=0.0),
    "adam_beta1": Option("`model.optimizer.betas`", betas, default=0.9),
    "adam_beta2": Option("`model.optimizer.betas`", betas, default=0.999),
    "adam_epsilon": same("model.optimizer.eps"),
    **none("optim_args optim_target_modules", "Give `model.optimizer` its options by name."),
    "lr_scheduler_type": Option("`model.lr_scheduler`", schedule, "Those of decay need the number of steps.", "linear"),
    "warmup_steps": read_with("lr_scheduler_type"),
    "warmup_ratio": read_with("lr_scheduler_type"),
    **none("lr_scheduler_kwargs", "Give `model.lr_scheduler` its options by name."),
    "max_grad_norm": same("trainer.gradient_clip_val", default=1.0),
    "num_train_epochs": Option("`trainer.max_epochs`", epochs, default=3.0),
    "max_prompt_length": same("data.max_prompt_length", note="Of earlier releases."),
    "max_steps": Option("`steps` of the callback `StopAfter`", max_steps),
    **none("label_smoothing_factor neftune_noise_alpha", "The model trains on its own inputs and labels."),
    # -- the run
    "output_dir": same("run_dir"),
    "seed": same("seed_everything", "model.seed"),
    "full_determinism": same("trainer.deterministic"),
    "bf16": Option("`trainer.precision`", precision,
                   "Or keep 32-true, and give the frozen base `model.backbone.dtype: bfloat16`, which is faster."),
    "fp16": Option("`trainer.precision`", precision),
    "use_cpu": one_of("trainer.accelerator", {True: "cpu", False: "auto"}),
    "logging_steps": whole_number("trainer.log_every_n_steps", "It is a whole number of steps here."),
    "report_to": Option("`trainer.logger`", logger),
    **none("run_name project logging_dir", "Names belong to the logger: give `trainer.logger` its options."),
    **none("logging_strategy logging_first_step disable_tqdm log_level", "`metrics.jsonl` has each step; bar and log are "
            "`PhaseProgressBar` and `trainer.logger`."),
    "save_steps": Option(f"`{EVERY}` of `IterationCheckpoint`", save_steps(f"{_CHECKPOINT}.{EVERY}"),
                         "Training batches; of policies rollouts with all their updates."),
    "save_total_limit": Option("`keep_last` of `IterationCheckpoint`", whole(f"{_CHECKPOINT}.keep_last", "It keeps 1 or more.")),
    **none("save_strategy save_only_model", "`IterationCheckpoint` saves whole states, so that a resumed run goes on exactly."),
    "eval_steps": Option("`trainer.val_check_interval`", evaluation, "Ours counts batches; TRL's optimizer steps."),
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
