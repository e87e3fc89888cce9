"""SFT, reward model and DPO with TRL 1.16."""

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.peers.processes import report
from benchmarks.workloads.settings import TARGETS, Settings
from benchmarks.workloads.shared import Clock, fill_adapters, head_weight, start

TRAINERS = {
    "sft": (SFTConfig, SFTTrainer),
    "reward": (RewardConfig, RewardTrainer),
    "dpo": (DPOConfig, DPOTrainer),
}
COLUMNS = {"sft": ["prompt", "completion"], "reward": ["prompt", "chosen", "rejected"]}
COLUMNS["dpo"] = COLUMNS["reward"]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Times steps and keeps what is logged."""

    def __init__(self, name: str) -> None:
        self.clock = Clock()
        self.name = name
        self.curve: list[float] = []
        self.lengths: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step has ended."""
        self.clock.tick()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep the loss or the reward."""
        if logs and self.name in logs:
            self.curve.append(float(logs[self.name]))
            self.lengths.append(float(logs.get("completions/mean_length", 0.0)))


def tokenizer_with_padding(model: str) -> Any:
    """The tokenizer with a pad token other than EOS: TRL reads scores one token early where they are the same."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def adapter(settings: Settings, task: str) -> LoraConfig:
    """The same LoRA as ours."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=0.0,
        target_modules=TARGETS,
        task_type=task,
    )


def common_options(settings: Settings) -> dict[str, Any]:
    """Options of transformers' trainer that are ours too; its defaults for memory (recomputation, autocast) are off."""
    return {
        "output_dir": "/tmp/unused",
        "learning_rate": settings.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": settings.seed,
    }


def load(settings: Settings, tokenizer: Any) -> Any:
    """The model to train, its head drawn from the seed."""
    dtype = getattr(torch, settings.dtype)
    if settings.workload != "reward":
        return AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.model, num_labels=1, dtype=dtype
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.weight.data.copy_(head_weight(model.config.hidden_size, settings.seed))
    return model


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    tokenizer = tokenizer_with_padding(settings.model)
    config, trainer_class = TRAINERS[settings.workload]
    columns = COLUMNS[settings.workload]
    rows = [{name: row[name] for name in columns} for row in settings.rows()]
    watch = Watch("loss")
    trainer = trainer_class(
        model=load(settings, tokenizer),
        args=config(
            per_device_train_batch_size=settings.batch,
            max_steps=settings.steps,
            train_sampling_strategy="sequential",
            max_length=1024,
            **common_options(settings),
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=adapter(settings, "SEQ_CLS" if settings.workload == "reward" else "CAUSAL_LM"),
        callbacks=[watch],
    )
    fill_adapters(trainer.model.named_parameters(), settings.seed)
    trainer.train()
    result = {"seconds": watch.clock.seconds, "samples": settings.batch, "curve": watch.curve}
    report(result | {"dtype": settings.dtype})


if __name__ == "__main__":
    main()
