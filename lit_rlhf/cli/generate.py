"""`lit-rlhf generate`: sample completions from a policy, and keep the best."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lit_rlhf.cli.functions import call
from lit_rlhf.cli.output import write_rows
from lit_rlhf.cli.selection import Sample, keep_best, keep_pairs
from lit_rlhf.data import FileSource, PromptDataModule, PromptOnly, RowsSource
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, LoraSpec, ModelSpec, load_checkpoint_backbone
from lit_rlhf.models.adapters import read_adapter
from lit_rlhf.models.cards import read_record, recorded_prompts
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules import PolicyModule
from lit_rlhf.modules.collect import score_completions
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import RolloutEngine, Sampling
from lit_rlhf.types import Completions, Scores


def generate(
    model: str,
    prompts: str | None = None,
    prompt: str | None = None,
    output: Path | None = None,
    prompt_column: str = "prompt",
    sampling: Sampling | None = None,
    engine: RolloutEngine | None = None,
    num_samples: int = 1,
    reward: Reward | None = None,
    keep: Literal["all", "best", "pairs"] = "all",
    num_best: int = 1,
    batch_size: int = 32,
    dtype: DTypeName = "float32",
    seed: int = 0,
) -> None:
    r"""Sample completions from a policy, and with a reward score them and keep the best.

    Best-of-n (arXiv:2112.09332) is `--num_samples n --reward ... --keep best`: what it writes is a file of
    demonstrations (columns `prompt`, `completion`, `score`) that DemonstrationDataModule reads. Its KL to the policy is
    at most log n - (n - 1)/n nats. RAFT (arXiv:2304.06767) goes round: generate with --keep best, `lit-rlhf fit` with
    SupervisedModule from the same policy on that file, generate with what came out, ... After T rounds that is
    best-of-n^T: nothing holds it to the initial policy but the number of rounds. `--keep pairs` writes best and worst
    as preferences (`prompt`, `chosen`, `rejected`, `p_chosen`) for PreferenceDataModule and offline DPO. Completions
    cut at the length limit are never kept so.

    Args:
        model: A causal language model (directory or hub id), an exported adapter, or a checkpoint (.ckpt).
        prompts: JSONL, JSON, CSV or Parquet with a prompt in each row.
        prompt: One prompt, instead of a file.
        output: JSONL to write, the rows with a column `response` (with a reward also `score` and `finished`), or what
            `keep` says; default: standard output.
        prompt_column: Column of the prompt; text, or messages that the chat template renders.
        sampling: Length limit, temperature, top-k, top-p; temperature 0 takes the likeliest token.
        engine: Default `NativeEngine`.
        num_samples: Completions of each prompt.
        reward: Scores completions; rules may read the other columns of the rows.
        keep: All completions, the best of each prompt, or its best and worst; the latter two need a reward.
        num_best: How many of each prompt `--keep best` keeps.
        batch_size: Prompts that are completed together.
        dtype: Of the model's weights.
        seed: The same seed gives the same completions.
    """
    if (prompts is None) == (prompt is None):
        raise ConfigurationError("Give either --prompts FILE or --prompt TEXT.")
    if num_samples < 1:
        raise ConfigurationError(f"--num_samples {num_samples} must be at least 1.")
    _check_selection(reward, keep, num_samples, num_best)
    source = FileSource(prompts) if prompts is not None else RowsSource([{prompt_column: prompt}])
    actor = PolicyModule(
        ModelSpec(name=model),
        reward or _Unscored(),
        engine=engine,
        eval_sampling=sampling,
        recompute_logprobs=True,  # whose log-probs they are is no matter here
        seed=seed,
    )
    actor.backbone = _policy(model, dtype)
    actor.reward.attach(actor.backbone)
    data = PromptDataModule(
        test=source,
        tokenizer=actor.backbone.tokenizer,
        format=PromptOnly(prompt_column, columns=[] if reward is None else None),
        invalid="error",
        batch_size=batch_size,
    )
    data.prepare_data()
    data.setup("test")
    form = data.prompt_form("test")
    if form is not None:
        actor.check_prompts(form)
    samples: dict[int, list[Sample]] = {}
    for batch in data.test_dataloader():
        with torch.no_grad():
            _, completions = actor.generate(batch, actor.eval_sampling, "generate", num_samples)
            scores = score_completions(actor.reward, completions, 0)
        columns = (completions.responses, scores.total.tolist(), completions.finished.tolist())
        found = [Sample(*values) for values in zip(*columns, strict=True)]
        for i, index in enumerate(batch["index"].tolist()):
            samples[index] = found[i * num_samples : (i + 1) * num_samples]
    rows = [dict(row) for row in source.load()]
    write_rows(_kept(rows, samples, keep, num_best, scored=reward is not None), output)


class _Unscored(Reward):
    """Where no reward is given."""

    def score(self, completions: Completions) -> Scores:
        return Scores(torch.zeros(len(completions.responses)))


def _kept(
    rows: list[dict[str, Any]],
    samples: Mapping[int, list[Sample]],
    keep: str,
    num_best: int,
    *,
    scored: bool,
) -> list[dict[str, Any]]:
    prompts = [(row, samples[i]) for i, row in enumerate(rows)]
    if keep == "all":
        said = ("score", "finished") if scored else ()
        return [
            {**row, "response": sample.text, **{name: getattr(sample, name) for name in said}}
            for row, found in prompts
            for sample in found
        ]
    if keep == "best":
        kept, why = keep_best(prompts, num_best), "no completion ended"
    else:
        kept, why = keep_pairs(prompts), "too few completions ended, or all score the same"
    if kept.without:
        sys.stderr.write(f"{kept.without} of {len(rows)} prompts are left out: {why}.\n")
    return kept.rows


def _check_selection(reward: Reward | None, keep: str, num_samples: int, num_best: int) -> None:
    if keep == "all":
        return
    if reward is None:
        raise ConfigurationError(
            f"--keep {keep} chooses by score: give --reward, such as --reward.class_path LengthReward."
        )
    least = num_best + 1 if keep == "best" else 2
    if num_best < 1 or num_samples < least:
        raise ConfigurationError(
            f"--keep {keep} with --num_best {num_best} chooses from --num_samples {num_samples} completions of a "
            f"prompt: there must be at least {max(least, 2)}."
        )


def _policy(model: str, dtype: DTypeName) -> Backbone:
    if model.endswith(".ckpt"):
        return load_checkpoint_backbone(model, dtype=dtype)
    if not (Path(model) / "adapter_config.json").is_file():
        return Backbone.load(ModelSpec(name=model, dtype=dtype), trainable=False).eval()
    base = read_adapter(model)[0].base_model_name_or_path
    spec = ModelSpec(name=base, tokenizer=model, dtype=dtype, lora=LoraSpec())
    backbone = Backbone.load(spec, trainable=False)
    backbone.add_adapter("policy", path=model, trainable=False)
    backbone.prompts = recorded_prompts(read_record(Path(model)))
    return backbone.eval()


def run(words: Sequence[str]) -> None:
    """Parse a command line and run it."""
    call(generate, words[1:], "generate")
