"""The page that goes from people to a policy, run as it stands, with raters at the page in Chromium."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.callbacks import IterationCheckpoint
from lit_rlhf.evaluation import Comparison, ModelScorer
from lit_rlhf.feedback import LabelStore
from tests.docs.pages import blocks_of
from tests.docs.test_blocks import run_line, workplace, world
from tests.unit.feedback.rater import Rater, browsers
from tests.unit.feedback.server import running

pytestmark = pytest.mark.browser
__all__ = ["browsers", "workplace", "world"]  # fixtures


def shorter(rater: Rater) -> str:
    """The key of the answer with fewer characters, A of two as short."""
    a, b = (len(answer.text) for answer in rater.answers())
    return "a" if a <= b else "b"


def rate(words: list[str], browsers: list[Any], asked: list[int]) -> None:
    """Run the command that serves, and have two people work there by turns until nothing is left to ask."""
    with running(*words, "--port", "0") as server:
        raters = [Rater(b, server.url, n) for b, n in zip(browsers, ("ann", "bob"), strict=True)]
        while any(rater.pair() is not None for rater in raters):
            for rater in raters:
                if rater.pair() is not None:
                    asked.append(rater.answer("t" if not asked else shorter(rater)))
        assert all(rater.problems() == [] for rater in raters)


def test_from_people_to_a_policy(workplace: Path, browsers: list[Any]) -> None:
    lines = [
        line
        for block in blocks_of("howto/people.md")
        if block.language in ("bash", "sh")
        for line in block.text.splitlines()
    ]
    serving = [line for line in lines if " annotate " in line and "--export" not in line]
    assert len(serving) == 2
    asked: dict[str, list[int]] = {line: [] for line in serving}
    for line in lines:
        if line in serving:
            rate(shlex.split(line)[2:], browsers, asked[line])
        else:
            run_line(line)
    people = workplace / "runs" / "people"

    labels = LabelStore(people / "labels", create=False)
    rows = [json.loads(line) for line in (people / "preferences.jsonl").read_text().splitlines()]
    said = [(pair.prompt, {pair.first, pair.second}) for pair in labels.pairs().values()]
    assert {vote.rater for vote in labels.votes()} == {"ann", "bob"}
    assert len(labels.votes()) == 2 * len(said) == 2 * len(rows)
    assert all((row["prompt"], {row["chosen"], row["rejected"]}) in said for row in rows)
    assert sorted({row["p_chosen"] for row in rows}) == [0.75, 1.0]  # ann's one tie
    sure = [row for row in rows if row["p_chosen"] == 1.0]
    assert sum(len(row["chosen"]) <= len(row["rejected"]) for row in sure) > 0.9 * len(sure)

    reward = json.loads((people / "reward" / "run.json").read_text())
    assert "preferences.jsonl" in json.dumps(reward)
    samples = [
        json.loads(line) for line in (people / "policy" / "samples.jsonl").read_text().splitlines()
    ]
    assert samples
    report = (people / "policy" / "report.html").read_text()
    assert re.search(r"PPO", report)

    # The next round: the first pair that is asked is the one on which the heads disagree most.
    (again,) = [line for line in serving if "--ensemble" in line]
    scorer = ModelScorer.load(
        str(IterationCheckpoint(str(people / "reward" / "checkpoints")).newest_whole())
    )
    pairs = LabelStore(people / "next_labels", create=False).pairs()
    texts = [
        Comparison(pair.prompt, (pair.first, pair.second), (0.0, 0.0)) for pair in pairs.values()
    ]
    members = [found.members for found in scorer.score(texts)]
    spread = {
        number: float(torch.std(scores[:, 0] - scores[:, 1], correction=0))
        for number, scores in zip(pairs, members, strict=True)
    }
    order = sorted(spread, key=lambda number: -spread[number])
    assert len(set(spread.values())) > 10
    assert asked[again][: len(order)] == order
