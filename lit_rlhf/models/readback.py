"""Reading an export back as others will, by plain transformers or peft, and comparing a forward with ours."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_rlhf.errors import CheckpointError, is_out_of_memory
from lit_rlhf.internals.bitsandbytes import keep_trainable
from lit_rlhf.models.backbone import Backbone, evaluating
from lit_rlhf.models.loading import (
    attention_to_load,
    dtype_of,
    embeddings,
    quantization_config,
    quiet,
)
from lit_rlhf.types import BranchedBatch, asked

EXACT, ROUNDED = 1e-3, 0.25
"""Largest difference of a log-prob in nats, or of a score in units of 1 + |score|; the second is a mean, for weights in
half precision or quantized, into which a merged adapter is rounded."""
_TOKENS = 12


@torch.no_grad()
def check_export(
    directory: Path,
    backbone: Backbone,
    role: str | None,
    *,
    as_adapter: bool,
    head: Tensor | None = None,
) -> None:
    """Load what was written and compare log-probs, or with a head the score, of one short text.

    An adapter whose base was never saved can't be loaded by anyone, so it isn't.

    Args:
        directory: The export, complete.
        backbone: What it was written from.
        role: Whose adapter.
        as_adapter: Whether it is an adapter, to be loaded on its base.
        head: (1, h) of a reward model.

    Raises:
        CheckpointError: It can't be loaded, or gives other numbers.
    """
    if backbone.device.type == "meta" or (as_adapter and backbone.spec.name is None):
        return
    batch = _text(backbone)
    with evaluating(backbone):
        if head is None:
            ours = asked(backbone(batch, num_branches=1, role=role, logprobs=True).logprobs)
        else:
            states = asked(backbone(batch, num_branches=1, role=role, hidden=True).hidden)
            ours = states[-1:].float() @ head[0].float().to(states.device)
    # A score is read at the last token, and states are those before each: the text ends one token earlier.
    ids = batch["input_ids"].cpu() if head is None else batch["input_ids"].cpu()[:, :-1]
    auto: Any = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    try:
        model = _loaded(auto, directory, backbone, as_adapter=as_adapter)
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()
    except Exception as error:  # whatever a loader says of files that it can't take
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:400]
        raise CheckpointError(
            f"The export was written and can't be loaded by {auto.__name__}, so it was removed again: {said}"
        ) from error
    if head is None:
        theirs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        gaps = (theirs - ours.float().cpu()).abs()
    else:
        gaps = (logits[:, 0] - ours.cpu()).abs() / (1 + ours.cpu().abs())
    exact = backbone.spec.quantization == "none" and backbone.spec.dtype == "float32"
    gap = float(gaps.max() if exact else gaps.mean())
    if not gap <= (EXACT if exact else ROUNDED):  # NaN fails too
        what = "log-probs" if head is None else "scores"
        raise CheckpointError(
            f"The export, read back by {auto.__name__}, gives other {what} than the model it was written from "
            f"(difference {gap:.3g}), so it was removed again. Please report the model type "
            f"{backbone.model.config.model_type!r}."
        )


def _loaded(auto: Any, directory: Path, backbone: Backbone, *, as_adapter: bool) -> Any:
    spec = backbone.spec
    options: dict[str, Any] = {
        "dtype": dtype_of(spec),
        # What it was loaded with itself: transformers before 5.21 gives Gemma 2 an SDPA that forgets the soft cap.
        "attn_implementation": attention_to_load(backbone.model.config, spec.attention),
        "trust_remote_code": spec.trust_remote_code,
    }
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about transformers, say
        if not as_adapter:
            return auto.from_pretrained(directory, **options).eval()
        if auto is AutoModelForSequenceClassification:
            options["num_labels"] = 1
        quantized = quantization_config(spec)
        options |= {"revision": spec.revision, "quantization_config": quantized}
        base = auto.from_pretrained(spec.name, **options)
        for module in base.modules():
            keep_trainable(module)  # packing at the first inference fails on narrow layers
        base.config.get_text_config().pad_token_id = backbone.pad_token_id
        return PeftModel.from_pretrained(base, str(directory)).eval()


def _text(backbone: Backbone) -> BranchedBatch:
    """A row of one token and an answer, of ids that aren't special."""
    rows = embeddings(backbone.model).shape[0]
    special = set(backbone.tokenizer.all_special_ids)
    known = [index for index in range(min(rows, 4096)) if index not in special] or [0]
    ids = torch.tensor([[known[(17 * i + 5) % len(known)] for i in range(_TOKENS)]])
    return BranchedBatch(
        input_ids=ids.to(backbone.device),
        branch_ids=(torch.arange(_TOKENS)[None] > 0).long().to(backbone.device),
        position_ids=torch.arange(_TOKENS)[None].to(backbone.device),
    )
