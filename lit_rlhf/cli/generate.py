"""`lit-rlhf generate`: sample completions from a policy, and keep the best."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from transformers import PreTrainedTokenizerBase

from lit_rlhf.cli import selection
from lit_rlhf.cli.functions import REQUEST, Special
from lit_rlhf.cli.output import (
    refuse_input,
    require_columns,
    say_written,
    set_aside,
    writable_rows,
    write_rows,
)
from lit_rlhf.cli.selection import Sample, Selection
from lit_rlhf.cli.unfinished import Unfinished, as_learned, batches_left, unfinished_of
from lit_rlhf.data import PromptDataModule, PromptOnly, RowsSource, Source
from lit_rlhf.data.preparation import InvalidPolicy
from lit_rlhf.data.sources import local_source
from lit_rlhf.data.written import written_messages
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.evaluation.scorers import Layout
from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.judges import render, write_out
from lit_rlhf.models import Backbone, ModelSpec, evaluating, load_policy
from lit_rlhf.models.fingerprint import weights_fingerprint
from lit_rlhf.models.precision import default_device
from lit_rlhf.models.specs import DTypeOption
from lit_rlhf.modules import PolicyModule
from lit_rlhf.modules.collect import score_completions
from lit_rlhf.modules.reference import Reference
from lit_rlhf.modules.resumed import served
from lit_rlhf.rewards import NoReward, Reward
from lit_rlhf.rollout import RolloutEngine, Sampling
from lit_rlhf.tokenizers import tokenizer_fingerprint
from lit_rlhf.types import PromptBatch, ScoredRollout

Keep = Literal["all", "finished", "best", "pairs", "candidates", "self_play"]
SPECIAL: Special = {"request": REQUEST}


def generate(
    model: str,
    prompts: str | None = None,
    prompt: str | None = None,
    output: Path | None = None,
    prompt_column: str = "prompt",
    prompt_template: str | None = None,
    layout: Layout = "auto",
    response_column: str = "response",
    completion_column: str = "completion",
    sampling: Sampling | None = None,
    engine: RolloutEngine | None = None,
    num_samples: int = 1,
    reward: Reward | None = None,
    reference: str | None = None,
    keep: Keep = "all",
    num_best: int = 1,
    batch_size: int = 32,
    invalid: InvalidPolicy = "error",
    dtype: DTypeOption = "auto",
    seed: int = 0,
    request: str = "",
) -> None:
    r"""Sample completions from a policy, on a GPU where there is one, and with a reward score them and keep the best.

    Best-of-n (arXiv:2112.09332) is `--num_samples n --reward ... --keep best`: what it writes is a file of
    demonstrations (columns `prompt`, `completion`, `score`) that DemonstrationDataModule reads. Its KL to the policy is
    at most log n - (n - 1)/n nats. RAFT (arXiv:2304.06767) goes round: generate with --keep best, `lit-rlhf fit` with
    SupervisedModule from the same policy on that file, generate with what came out, ... After T rounds that is
    best-of-n^T: nothing holds it to the initial policy but the number of rounds. `--keep pairs` writes best and worst
    as preferences (`prompt`, `chosen`, `rejected`, `p_chosen`) for PreferenceDataModule and offline DPO; `--keep
    self_play` the row's own completion as chosen and the sample as rejected (SPIN, arXiv:2401.01335); `--keep
    candidates` the different completions of each prompt, for `lit-rlhf label` and `annotate`. Completions cut at the
    length limit are never kept so. Killed, the same command goes on behind its last whole batch, with the same result.
    `lit-rlhf iterate` goes round by itself. With `--prompt_template` a second call asks
    about what the first one wrote: critique and revise (Constitutional AI, arXiv:2212.08073), see docs/howto/revise.md.

    Args:
        model: A causal language model (directory or hub id), an exported adapter, or a checkpoint (.ckpt).
        prompts: JSONL, JSON, CSV or Parquet with a prompt in each row, or a directory that `save_to_disk` of the
            datasets library wrote.
        prompt: One prompt, instead of a file.
        output: JSONL to write, the rows with a column `response` (with a reward also `score`, null where it
            couldn't be scored, and `finished`), or what `keep` says; default: standard output. A column of such a name
            that they hold already goes on as `NAME_before`.
        prompt_column: Column of the prompt; text, or messages that the chat template renders.
        prompt_template: Jinja that makes the prompt of a row's columns (and its `number`), as in "Shorten: {{ response
            }}"; a user's message where the model has a chat template.
        layout: Prompts of plain text as chats, or as they stand. auto: as the model has learned them, and as they stand
            where it doesn't say. What is kept to train on then has the chat's messages as its prompt.
        response_column: What the completion's column is called.
        completion_column: Column of the demonstration that `--keep self_play` sets against the samples.
        sampling: Length limit, temperature, top-k, top-p; temperature 0 takes the likeliest token.
        engine: Default `NativeEngine`.
        num_samples: Completions of each prompt.
        reward: Scores completions; rules may read the other columns of the rows.
        reference: Another model; the column `kl` then holds log-prob less the log-prob under it, in nats, whose mean is
            the KL of the policy to it.
        keep: All completions, all that ended, the best of each prompt, or its best and worst, which both need
            a reward; or candidates to compare, or self_play.
        num_best: How many of each prompt `--keep best` keeps.
        batch_size: Prompts that are completed together.
        invalid: Rows whose prompt can't be used end it, or are left out and counted.
        dtype: Of the models' weights; auto: bfloat16 where the device multiplies it, float32 elsewhere.
        seed: The same seed gives the same completions.
        request: No option: all of them as text, by which a killed call is known again. Empty: nothing is kept for one.
    """
    if (prompts is None) == (prompt is None):
        raise ConfigurationError("Give either --prompts FILE or --prompt TEXT.")
    _check_selection(reward, keep, num_samples, num_best)
    _check_reference(reference, sampling or Sampling(), keep)
    source: Source = (
        RowsSource([{prompt_column: prompt}]) if prompts is None else local_source(prompts)
    )
    refuse_input(output, source)
    rows = _rows(source, completion_column if keep == "self_play" else None)
    if prompt_template is None:
        require_columns(source, rows, {"--prompt_column": prompt_column})
    actor = _actor(model, reward, engine, sampling, reference, dtype, seed)
    if prompt_template is not None:
        source = _templated(rows, prompt_column, prompt_template, actor.backbone.tokenizer)
    plain = PromptOnly(prompt_column, columns=[] if reward is None else None)
    asked = [row.get(prompt_column) for row in source.load()]
    format = as_learned(plain, layout, actor.backbone, asked)
    data = PromptDataModule(
        test=source,
        tokenizer=actor.backbone.tokenizer,
        format=format,
        invalid=invalid,
        max_invalid=1.0,
        batch_size=batch_size,
    )
    unfinished = unfinished_of(output, request, rows, partial(_weights, actor))
    samples = _samples(actor, data, num_samples, unfinished, with_kl=reference is not None)
    columns = [*(("score", "finished") if reward else ()), *(("kl",) if reference else ())]
    every = keep in ("all", "finished")
    shown = rows
    if not every and format is not plain:
        shown = [{**row, prompt_column: format(row)[0].prompt} for row in rows]
    shown = set_aside(
        shown, [response_column, *columns] if every else selection.WRITTEN.get(keep, ())
    )
    prompted = [(row, samples[i]) for i, row in enumerate(shown) if i in samples]
    written = partial(selection.every, column=response_column, columns=columns)
    select, why = _selection(keep, written, num_best, prompt_column, completion_column)
    kept, without = selection.keep(prompted, select)
    if without and why:
        sys.stderr.write(f"{without} of {len(prompted)} prompts are left out: {why}.\n")
    write_rows(kept, output)
    unfinished.forget()
    say_written(len(kept), output)


def _rows(source: Source, demonstration: str | None) -> list[dict[str, Any]]:
    """The rows whose prompts are completed; of `self_play` each has something to set against the sample."""
    rows = writable_rows(source)
    for number, row in enumerate(rows):
        if demonstration is not None and not row.get(demonstration):
            raise DataError(
                f"{source.locate(number)}: no {demonstration!r} to set against the sample; there are "
                f"{sorted(row)}. Give the column of the demonstrations as --completion_column."
            )
    return rows


def _actor(
    model: str,
    reward: Reward | None,
    engine: RolloutEngine | None,
    sampling: Sampling | None,
    reference: str | None,
    dtype: DTypeOption,
    seed: int,
) -> PolicyModule:
    """A policy module that samples, scores and compares, and is never trained."""
    actor = PolicyModule(
        ModelSpec(name=model),
        reward or NoReward(),
        engine=engine,
        sampling=None if reference is None else sampling,
        eval_sampling=sampling,
        recompute_logprobs=True,  # whose log-probs they are matters to the KL alone
        seed=seed,
    )
    actor.backbone = load_policy(model, dtype=dtype)
    actor.reward.attach(actor.backbone)
    if reference is not None:
        actor.reference = _Other(load_policy(reference, dtype=dtype), actor.backbone)
    return actor.to(default_device())


def _weights(actor: PolicyModule) -> list[Any]:
    """Of all models that decide what is found: a path or an address may come to hold others."""
    found: list[Any] = [weights_fingerprint(actor.backbone, "policy"), served(actor)]
    if (source := actor.reward.source()) is not None:
        found.append(weights_fingerprint(source.backbone, source.role or "reward"))
    if isinstance(actor.reference, _Other):
        found.append(weights_fingerprint(actor.reference.model, "policy"))
    return found


class _Other(Reference):
    """A model of its own, whatever the policy is."""

    def __init__(self, model: Backbone, policy: Backbone) -> None:
        super().__init__()
        if tokenizer_fingerprint(model.tokenizer) != tokenizer_fingerprint(policy.tokenizer):
            raise ConfigurationError(
                "--reference has another tokenizer than --model: token ids would mean other words. Give the model that "
                "the policy was trained from."
            )
        self.model = model

    def beside(self, policy: Backbone) -> tuple[Backbone, str | None]:
        return self.model, "policy" if self.model.has_lora else None


def _samples(
    actor: PolicyModule,
    data: PromptDataModule,
    num_samples: int,
    unfinished: Unfinished,
    *,
    with_kl: bool,
) -> dict[int, Sequence[Sample]]:
    """The completions of each row that can be used, by its place in the source."""
    data.prepare_data()
    data.setup("test")
    if (form := data.prompt_form("test")) is not None:
        actor.check_prompts(form)
    for batch in batches_left(data.test_dataloader(), unfinished, "completing"):
        found = [asdict(each) for each in _sample(actor, batch, num_samples, with_kl=with_kl)]
        starts = zip(batch["index"].tolist(), range(0, len(found), num_samples), strict=True)
        unfinished.add({row: found[start : start + num_samples] for row, start in starts})
    used = data.rows["test"]
    return {used[i]["row"]: [Sample(**each) for each in of] for i, of in unfinished.known.items()}


@torch.no_grad()
def _sample(
    actor: PolicyModule, batch: PromptBatch, num_samples: int, *, with_kl: bool
) -> list[Sample]:
    batch = move_data_to_device(batch, actor.device)
    rollout, completions = actor.generate(batch, actor.eval_sampling, "generate", num_samples)
    scores = score_completions(actor.reward, completions, None)
    kl = [0.0] * len(completions.responses)
    if with_kl:
        with evaluating(actor.backbone):
            found = actor.evaluate(rollout.to_stage(ScoredRollout, scores=scores))
        ratios = found.old_logprobs - found.ref_logprobs
        kl = masked_sum(ratios, found.response_mask, dim=-1).tolist()
    known = zip(scores.total.tolist(), scores.left_out.tolist(), strict=True)
    totals = [None if failed else total for total, failed in known]
    columns = (completions.responses, totals, completions.finished.tolist(), kl)
    return [Sample(*values) for values in zip(*columns, strict=True)]


def _templated(
    rows: Sequence[dict[str, Any]], column: str, template: str, tokenizer: PreTrainedTokenizerBase
) -> Source:
    """The rows with prompts that a template makes of their columns, in which conversations are written out."""
    asked = []
    for number, row in enumerate(rows):
        said = {**row, "number": number}
        for name, value in row.items():
            found = written_messages(value) if isinstance(value, str) else value
            turns = found if isinstance(found, list) else []
            if turns and all(isinstance(turn, dict) and "content" in turn for turn in turns):
                said[name] = write_out(turns)
        text = render(template, said, "of --prompt_template")
        chats = tokenizer.chat_template is not None
        asked.append({**row, column: [{"role": "user", "content": text}] if chats else text})
    return RowsSource(asked)


def _selection(
    keep: Keep, every: Callable[..., Any], num_best: int, prompt: str, completion: str
) -> tuple[Selection, str]:
    """What is kept of a prompt, and why one is left out of which nothing is."""
    ways: dict[Keep, tuple[Selection, str]] = {
        "all": (partial(every, unfinished=True), ""),
        "finished": (partial(every, unfinished=False), ""),
        "best": (partial(selection.best, number=num_best), "no completion ended"),
        "pairs": (
            selection.best_and_worst,
            "too few completions ended, or all score the same",
        ),
        "candidates": (
            partial(selection.candidates, prompt=prompt),
            "fewer than two different completions ended",
        ),
        "self_play": (
            partial(selection.self_play, prompt=prompt, completion=completion),
            "no completion ended, or it is the demonstration itself",
        ),
    }
    return ways[keep]


def _check_reference(reference: str | None, sampling: Sampling, keep: Keep) -> None:
    if reference is None:
        return
    if keep != "all":
        raise ConfigurationError("--reference measures the KL of all samples: leave --keep out.")
    if sampling.top_p < 1 or sampling.top_k > 0 or sampling.temperature <= 0:
        raise ConfigurationError(
            "--reference measures the KL of what is sampled, which top_k, top_p and temperature 0 cut off: leave them "
            "out of --sampling."
        )


def _check_selection(reward: Reward | None, keep: str, num_samples: int, num_best: int) -> None:
    if num_samples < 1:
        raise ConfigurationError(f"--num_samples {num_samples} must be at least 1.")
    if keep == "candidates" and num_samples < 2:
        raise ConfigurationError("--keep candidates compares: give --num_samples 2 or more.")
    if keep not in ("best", "pairs"):
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
