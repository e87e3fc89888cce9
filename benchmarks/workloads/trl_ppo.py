"""PPO with TRL 1.12, the last release that has it: LoRA policy, a reward model and a value model of their own."""

import sys
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.peers.processes import report
from benchmarks.workloads.settings import Settings
from benchmarks.workloads.shared import fill_adapters, start
from benchmarks.workloads.trl_offline import Watch, adapter, common_options, tokenizer_with_padding


def count_tokens(pad_token_id: int) -> list[int]:
    """Tokens of each rollout, stop tokens included: TRL logs none, so its cut behind the stop token is listened to."""
    counts: list[int] = []
    cut = ppo_trainer.truncate_response

    def listen(*args: Any) -> Tensor:
        responses: Tensor = cut(*args)
        counts.append(int((responses != pad_token_id).sum()))
        return responses

    ppo_trainer.truncate_response = listen
    return counts


def build(settings: Settings, tokenizer: Any, watch: TrainerCallback, **options: Any) -> PPOTrainer:
    """The trainer, with initial adapters as everywhere; options are further ones of `PPOConfig`."""
    tokenizer.padding_side = "left"
    dtype = getattr(torch, settings.dtype)
    scorers = [
        AutoModelForSequenceClassification.from_pretrained(
            settings.reward_model, num_labels=1, dtype=dtype
        )
        for _ in ("reward", "value")
    ]
    told = {
        "per_device_train_batch_size": settings.batch,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "num_ppo_epochs": settings.epochs,
        "total_episodes": settings.batch * settings.steps,
        "local_rollout_forward_batch_size": settings.batch,
        "response_length": settings.new_tokens,
        "temperature": 1.0,
        "stop_token": "eos",
        "kl_coef": 0.05,
        "num_sample_generations": 0,
    }
    trainer = PPOTrainer(
        args=PPOConfig(**told | common_options(settings) | options),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype),
        ref_model=None,
        reward_model=scorers[0],
        value_model=scorers[1],
        train_dataset=Dataset.from_list(
            [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in settings.rows()]
        ),
        peft_config=adapter(settings, "CAUSAL_LM"),
        callbacks=[watch],
    )
    fill_adapters(trainer.model.named_parameters(), settings.seed)
    return trainer


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    tokenizer = tokenizer_with_padding(settings.model)
    watch = Watch("objective/scores")
    counts = count_tokens(tokenizer.pad_token_id)
    recompute = "recompute" in sys.argv[2:]
    build(settings, tokenizer, watch, gradient_checkpointing=recompute).train()
    result = {"seconds": watch.clock.seconds, "samples": settings.batch, "curve": watch.curve}
    report({**result, "tokens": counts[1 : settings.steps]})


if __name__ == "__main__":
    main()
