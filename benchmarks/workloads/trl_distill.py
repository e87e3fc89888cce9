"""On-policy distillation with TRL 1.16: `DistillationTrainer`, or `GKDTrainer` under the name distill_gkd."""

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from benchmarks.peers.processes import report
from benchmarks.workloads.settings import Settings
from benchmarks.workloads.shared import fill_adapters, start
from benchmarks.workloads.trl_offline import Watch, adapter, common_options, tokenizer_with_padding

_BETA = 0.5
"""Of the divergence; GKD's default and ours."""


def tokenized(settings: Settings, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Ids of prompts and of their completions, EOS included."""
    found = []
    for row in settings.rows():
        prompt = tokenizer(row["prompt"])["input_ids"]
        both = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        found.append({"prompt": prompt, "answer": [*both[len(prompt) :], tokenizer.eos_token_id]})
    return found


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """What GKD's own collator makes of chats: prompts alone, and prompts with answers, padded on the left."""

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, lists))
        return torch.tensor([[value] * (width - len(ids)) + ids for ids in lists])

    prompts, both = ([r["prompt"] for r in rows], [r["prompt"] + r["answer"] for r in rows])
    labels = [[-100] * len(r["prompt"]) + r["answer"] for r in rows]
    return {
        "prompts": padded(prompts, pad),
        "prompt_attention_mask": padded([[1] * len(ids) for ids in prompts], 0),
        "input_ids": padded(both, pad),
        "attention_mask": padded([[1] * len(ids) for ids in both], 0),
        "labels": padded(labels, -100),
    }


def gkd(settings: Settings, tokenizer: Any, common: dict[str, Any]) -> Any:
    """The trainer of the paper's method; `lmbda` 0 takes the given answers."""
    options = {
        "max_new_tokens": settings.new_tokens,
        "lmbda": 0.0 if settings.given else 1.0,
        "train_sampling_strategy": "sequential",
        "temperature": 1.0,
        "beta": _BETA,
    }
    return GKDTrainer(
        args=GKDConfig(**options, **common_options(settings), **_steps(settings)),
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(tokenized(settings, tokenizer)),
        **common,
    )


def distillation(settings: Settings, tokenizer: Any, common: dict[str, Any]) -> Any:
    """The trainer that TRL recommends for a student's own samples; given answers come in their place."""
    answers = {tuple(row["prompt"]): row["answer"] for row in tokenized(settings, tokenizer)}

    class Given(DistillationTrainer):  # type: ignore[misc]
        def _generate_single_turn(
            self, prompt_ids: list[list[int]], *_: Any, **__: Any
        ) -> list[list[int]]:
            return [answers[tuple(ids)] for ids in prompt_ids]

    options = {
        "max_completion_length": None if settings.given else settings.new_tokens,
        "shuffle_dataset": False,
        "temperature": 1.0,
        "beta": _BETA,
    }
    return (Given if settings.given else DistillationTrainer)(
        args=DistillationConfig(**options, **common_options(settings), **_steps(settings)),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in settings.rows()]),
        **common,
    )


def _steps(settings: Settings) -> dict[str, Any]:
    return {"per_device_train_batch_size": settings.batch, "max_steps": settings.steps}


def main() -> None:
    settings = Settings.from_command_line()
    start(settings)
    tokenizer = tokenizer_with_padding(settings.model)
    tokenizer.padding_side = "left"
    dtype = getattr(torch, settings.dtype)
    watch = Watch("loss")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        for path in (settings.model, settings.teacher)
    )
    make = gkd if settings.workload == "distill_gkd" else distillation
    trainer = make(
        settings,
        tokenizer,
        {
            "model": student,
            "teacher_model": teacher,
            "processing_class": tokenizer,
            "peft_config": adapter(settings, "CAUSAL_LM"),
            "callbacks": [watch],
        },
    )
    fill_adapters(trainer.model.named_parameters(), settings.seed)
    trainer.train()
    result = {"seconds": watch.clock.seconds, "samples": settings.batch, "curve": watch.curve}
    report(result | {"dtype": settings.dtype, "given": settings.given})


if __name__ == "__main__":
    main()
