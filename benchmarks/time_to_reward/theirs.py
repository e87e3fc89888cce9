"""PPO with TRL 1.12, the last release that has it; GRPO and online DPO with TRL 1.16."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.peers.processes import report
from benchmarks.time_to_reward.race import PENALTY, Pace, Race
from benchmarks.workloads import trl_offline
from benchmarks.workloads.generation import cut
from benchmarks.workloads.shared import start
from benchmarks.workloads.trl_offline import tokenizer_with_padding


class Watch(trl_offline.Watch):
    """Keeps the pace too."""

    pace: Pace

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first iteration begins."""
        self.pace.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """An iteration has ended."""
        self.pace.tick()


def scorer(race: Race, tokenizer: Any) -> Callable[..., list[float]]:
    """The reward model on prompt and completion, the token that ends it included, as it was trained and as in PPO.

    Given as a model, TRL's trainers would show it texts without that token.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        race.reward_model, num_labels=1, dtype=getattr(torch, race.dtype)
    ).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    end = tokenizer.eos_token_id

    @torch.inference_mode()
    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        ended = [end in ids for ids in completion_ids]
        given = zip(tokenizer(prompts)["input_ids"], completion_ids, strict=True)
        rows = [text + cut(ids, [end]) for text, ids in given]
        padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        scores = model(**padded).logits[:, 0].tolist()
        return [score - PENALTY * (not done) for score, done in zip(scores, ended, strict=True)]

    return reward


def main() -> None:
    race = Race.from_command_line()
    start(race)
    tokenizer = tokenizer_with_padding(race.model)
    ppo = race.workload == "ppo"
    watch = Watch("reward" if race.workload == "grpo" else "objective/scores")
    # Only the release of TRL that has a method can import its script.
    build = import_module(f"benchmarks.workloads.trl_{'ppo' if ppo else 'online'}").build
    if ppo:
        own = {"num_mini_batches": race.minibatches, "missing_eos_penalty": PENALTY}
        trainer = build(race, tokenizer, watch, **own)
    else:
        trainer = build(race, tokenizer, watch, scorer(race, tokenizer))
    watch.pace = Pace(race, trainer.model.named_parameters)
    trainer.train()
    report({"marks": watch.pace.marks, "scores": watch.curve})


if __name__ == "__main__":
    main()
