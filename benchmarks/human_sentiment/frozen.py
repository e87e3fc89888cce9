"""A reward head on the frozen states of the initial policy: many recipes for the price of one pass over the sentences.

States are the last token's and the mean over tokens, of two layers in the middle.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from benchmarks.human_sentiment.labelled import Pairs
from benchmarks.human_sentiment.recipe_arms import ARMS
from benchmarks.human_sentiment.rows import PREFIX, Row
from lit_rlhf.files import whole_file
from lit_rlhf.objectives import RewardLoss
from lit_rlhf.objectives.columns import Batch
from lit_rlhf.seeding import generator

LAYERS = (15, 20)
"""States that come into these layers are read; those above are not computed."""
_AT_ONCE = 16
_KEPT_EVERY = 40
_EPOCHS = 120


class States:
    """Of sentences, kept in a file.

    Args:
        base: Directory of the model.
        file: Where they are kept.
    """

    def __init__(self, base: Path, file: Path) -> None:
        self.base, self.file = base, file
        self.known: dict[str, Tensor] = torch.load(file) if file.exists() else {}

    def of(self, texts: Sequence[str]) -> Tensor:
        """(n, features) in float32; those that aren't known are computed."""
        missing = sorted({text for text in texts if text not in self.known}, key=len)
        if missing:
            self._compute(missing)
        return torch.stack([self.known[text] for text in texts]).float()

    @torch.no_grad()
    def _compute(self, texts: Sequence[str]) -> None:
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        model = AutoModel.from_pretrained(self.base, dtype=torch.bfloat16).eval()
        model.layers = model.layers[: max(LAYERS) + 1]  # the last entry would be normed
        for place, start in enumerate(range(0, len(texts), _AT_ONCE)):
            part = texts[start : start + _AT_ONCE]
            lines = [f"{PREFIX} {text}{tokenizer.eos_token}" for text in part]
            read = tokenizer(lines, padding=True, padding_side="right", return_tensors="pt")
            found = model(**read, output_hidden_states=True).hidden_states
            mask = read["attention_mask"]
            ends = mask.sum(-1) - 1
            rows = torch.arange(len(part))
            states = []
            for layer in LAYERS:
                states += [found[layer][rows, ends], _mean(found[layer], mask)]
            self.known |= dict(zip(part, torch.cat(states, -1).half().unbind(), strict=True))
            if place % _KEPT_EVERY == _KEPT_EVERY - 1:
                self._keep()
        self._keep()

    def _keep(self) -> None:
        with whole_file(self.file) as partial:
            torch.save({text: state.clone() for text, state in self.known.items()}, partial)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Over tokens, (B, h), in float32."""
    weights = mask.float()[..., None]
    return (states.float() * weights).sum(1) / weights.sum(1)


def fit_head(
    loss: RewardLoss,
    states: Tensor,
    columns: Batch,
    checked: tuple[Tensor, Batch],
    seed: int,
    batch: int,
) -> nn.Linear:
    """A linear head fitted to rows of answers; of all epochs the one with the least loss on other rows is taken.

    Args:
        loss: The objective.
        states: (rows, K, features), of mean 0 and deviation 1.
        columns: What the objective reads, (rows, ...) each.
        checked: The same of rows that it doesn't learn from.
        seed: Of the order of rows.
        batch: Rows of a step.
    """
    draw = generator(seed, "head")
    head = nn.Linear(states.shape[-1], 1, bias=False)
    nn.init.zeros_(head.weight)
    rate = 0.25 / states.shape[-1]  # a step moves a score by less than that times its features
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.1)
    best, kept = float("inf"), head.weight.detach().clone()
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(states), generator=draw).split(batch):
            part = {name: values[rows] for name, values in columns.items()}
            optimizer.zero_grad()
            loss.of_batch(head(states[rows])[..., 0], part).loss.mean().backward()
            optimizer.step()
        with torch.no_grad():
            found = float(loss.of_batch(head(checked[0])[..., 0], checked[1]).loss.mean())
        if found < best:
            best, kept = found, head.weight.detach().clone()
    with torch.no_grad():
        head.weight.copy_(kept)
    return head


def fit_frozen(
    name: str, seed: int, states: States, lists: Pairs, unseen: Pairs
) -> Callable[[Sequence[str]], dict[str, float]]:
    """Fit a head on frozen states by one arm, on a random half of these lists, and stop by its loss on unseen ones.

    Returns:
        What scores sentences.
    """
    arm, drawn = ARMS[name], random.Random(seed).sample(lists, len(lists) // 2)
    read = [_columns(arm.rows(part)) for part in (drawn, unseen)]
    own, others = (
        states.of([text for row in texts for text in row]).view(len(texts), len(texts[0]), -1)
        for texts, _ in read
    )
    (_, columns), (_, checked) = read
    middle, spread = own.mean((0, 1)), own.std((0, 1))
    head = fit_head(
        arm.objective(),
        (own - middle) / spread,
        columns,
        ((others - middle) / spread, checked),
        seed,
        batch=arm.batch_size,
    )

    @torch.no_grad()
    def scored(texts: Sequence[str]) -> dict[str, float]:
        found = head((states.of(texts) - middle) / spread)[:, 0]
        return dict(zip(texts, found.tolist(), strict=True))

    return scored


def _columns(rows: Sequence[Row]) -> tuple[list[list[str]], dict[str, Tensor]]:
    """The answers of each row, and what a loss reads of it."""
    names = rows[0].keys() & {"p_chosen", "margin"}
    if "completions" not in rows[0]:
        texts = [[row["chosen"].strip(), row["rejected"].strip()] for row in rows]
        return texts, {name: torch.tensor([row[name] for row in rows]) for name in names}
    texts = [[text.strip() for text in row["completions"]] for row in rows]
    return texts, {"score": torch.tensor([row["scores"] for row in rows])}
