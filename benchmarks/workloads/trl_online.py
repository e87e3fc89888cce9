"""GRPO, RLOO and online DPO with TRL 1.16, generating with transformers as it does on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from benchmarks.peers.processes import report
from benchmarks.workloads.settings import Settings, vowel_share
from benchmarks.workloads.shared import fill_adapters, start
from benchmarks.workloads.trl_offline import Watch, adapter, common_options, tokenizer_with_padding

TRAINERS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "grpo": (GRPOConfig, GRPOTrainer, {"loss_type": "grpo", "beta": 0.04}),
    "rloo": (RLOOConfig, RLOOTrainer, {"beta": 0.05}),
    "online_dpo": (OnlineDPOConfig, OnlineDPOTrainer, {"beta": 0.1}),
}


def reward(completions: list[str], **columns: Any) -> list[float]:  # noqa: ARG001 - the trainer passes all columns
    """Share of vowels."""
    return [vowel_share(text) for text in completions]


def build(
    settings: Settings, tokenizer: Any, watch: TrainerCallback, score: Callable[..., list[float]]
) -> Any:
    """The trainer of a method, with initial adapters as everywhere."""
    config, trainer_class, own = TRAINERS[settings.workload]
    told = {"max_steps": settings.steps, "temperature": 1.0, **own}
    # Batches of online DPO are prompts, of which each gets two completions.
    if settings.workload == "online_dpo":
        told |= {"max_new_tokens": settings.new_tokens}
        told |= {"per_device_train_batch_size": settings.batch}
    else:
        told |= {"max_completion_length": settings.new_tokens, "shuffle_dataset": False}
        told |= {"num_generations": settings.num_samples}
        told |= {"per_device_train_batch_size": settings.batch * settings.num_samples}
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=getattr(torch, settings.dtype)
        ),
        reward_funcs=score,
        args=config(**told, **common_options(settings)),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in settings.rows()]),
        peft_config=adapter(settings, "CAUSAL_LM"),
        callbacks=[watch],
    )
    fill_adapters(trainer.model.named_parameters(), settings.seed)
    return trainer


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    watch = Watch("reward")
    build(settings, tokenizer_with_padding(settings.model), watch, reward).train()
    samples = settings.batch * settings.num_samples
    tokens = [length * samples for length in watch.lengths[1:]]
    result = {"seconds": watch.clock.seconds, "samples": samples, "curve": watch.curve}
    report(result | {"tokens": tokens})


if __name__ == "__main__":
    main()
