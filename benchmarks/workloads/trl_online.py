"""GRPO and RLOO with TRL 1.16, generating with transformers as it does on a CPU."""

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.peers.processes import report
from benchmarks.workloads.settings import Settings, vowel_share
from benchmarks.workloads.shared import fill_adapters, start
from benchmarks.workloads.trl_offline import Watch, adapter, common_options, tokenizer_with_padding


def reward(completions: list[str], **columns: Any) -> list[float]:  # noqa: ARG001 - the trainer passes all columns
    """Share of vowels."""
    return [vowel_share(text) for text in completions]


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    grpo = settings.workload == "grpo"
    config, trainer_class = (GRPOConfig, GRPOTrainer) if grpo else (RLOOConfig, RLOOTrainer)
    own: dict[str, Any] = {"loss_type": "grpo", "beta": 0.04} if grpo else {"beta": 0.05}
    watch = Watch("reward")
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=getattr(torch, settings.dtype)
        ),
        reward_funcs=reward,
        args=config(
            per_device_train_batch_size=settings.batch * settings.num_samples,
            num_generations=settings.num_samples,
            max_completion_length=settings.new_tokens,
            max_steps=settings.steps,
            temperature=1.0,
            shuffle_dataset=False,
            **own,
            **common_options(settings),
        ),
        processing_class=tokenizer_with_padding(settings.model),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in settings.rows()]),
        peft_config=adapter(settings, "CAUSAL_LM"),
        callbacks=[watch],
    )
    fill_adapters(trainer.model.named_parameters(), settings.seed)
    trainer.train()
    samples = settings.batch * settings.num_samples
    tokens = [length * samples for length in watch.lengths[1:]]
    report(
        {
            "seconds": watch.clock.seconds(),
            "samples": samples,
            "tokens": tokens,
            "curve": watch.curve,
        }
    )


if __name__ == "__main__":
    main()
