"""What a person should look at, in sentences, out of all that was counted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lit_rlhf.data.inspection.inspecting import Inspection, SplitFacts
from lit_rlhf.data.inspection.leakage import Leak

_FEW = 30  # cases below which a share says little


@dataclass(frozen=True)
class Finding:
    """A sentence.

    Args:
        text: The sentence.
        bad: Whether training or evaluation goes wrong by it; else it is worth a look.
        split: Which split it is about; empty: several.
    """

    text: str
    bad: bool = False
    split: str = ""


def findings(inspection: Inspection) -> list[Finding]:
    """What stands out, what is bad first.

    Args:
        inspection: What `inspect` found.
    """
    found = [_leak(leak) for leak in inspection.leaks if leak.rows_hit or leak.prompts_shared]
    for split in inspection.splits:
        for part in (_rows, _labels, _biases, _texts, _tokens):
            found += [replace(each, split=split.name) for each in part(split)]
    return sorted(found, key=lambda each: not each.bad)


def _share(part: int, whole: int) -> str:
    percent = 100 * part / max(whole, 1)
    return f"{percent:.2g} %" if 0 < percent < 10 else f"{percent:.0f} %"


def _of(part: int, split: SplitFacts) -> str:
    return f"{part:,} of {split.records:,} {split.unit} ({_share(part, split.records)})"


def _leak(leak: Leak) -> Finding:
    return Finding(
        f"{leak.other} stands in {leak.split}: {leak.rows_hit:,} of its {leak.rows:,} rows "
        f"({_share(leak.rows_hit, leak.rows)}) share {leak.run} words in a row with it, {leak.rows_covered:,} nearly "
        f"all of them; {leak.prompts_shared:,} prompts of {leak.split} stand there word for word. What is measured on "
        f"{leak.other} is too good by that.",
        bad=leak.rows_covered > 0 or leak.prompts_shared > 0,
    )


def _rows(split: SplitFacts) -> Iterator[Finding]:
    left = sum(split.left_out.values())
    if left:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in split.left_out.items())
        total = split.records + left
        yield Finding(
            f"{left:,} of {total:,} {split.unit} ({_share(left, total)}) are left out: {reasons}.",
            bad=left > 0.05 * total,
        )
    doubles = split.doubles
    if doubles.repeated:
        text = f"{_of(doubles.repeated, split)} repeat an earlier one word for word"
        yield Finding(f"{text}, one of them {doubles.most:,} times in all.")
    if doubles.contradicting:
        yield Finding(
            f"{_of(doubles.contradicting, split)} say the opposite of another one.",
            bad=doubles.contradicting > 0.02 * split.records,
        )
    if split.near is not None and split.near.records:
        yield Finding(f"{_of(split.near.records, split)} are nearly the same as an earlier one.")
    if doubles.most_of_prompt > max(0.01 * split.records, 10):
        yield Finding(f"{_of(doubles.most_of_prompt, split)} have the same prompt.")


def _labels(split: SplitFacts) -> Iterator[Finding]:
    labels, agreement = split.labels, split.labels.agreement
    if labels.reversed:
        text = "prefer the second answer by their margin or p_chosen"
        yield Finding(
            f"{_of(labels.reversed, split)} {text}: is `chosen` what was chosen?", bad=True
        )
    if labels.undecided:
        yield Finding(
            f"{_of(labels.undecided, split)} prefer neither answer by their margin or p_chosen."
        )
    for name, lacking in labels.unlabelled.items():
        yield Finding(f"{_of(lacking, split)} have no {name}, the others do.")
    classes = labels.values.get("label", {})
    one_sided = len(classes) == 1
    if one_sided or (classes and min(classes.values()) < 0.05 * split.records):
        counts = ", ".join(f"{bool(value)} {count:,}" for value, count in classes.items())
        yield Finding(f"The labels are uneven: {counts}.", bad=one_sided)
    if agreement is not None and agreement.overruled:
        text = "a label that is the opposite of what most of its raters say"
        yield Finding(
            f"{agreement.overruled:,} of {agreement.rated:,} rated {split.unit} have {text}."
        )
    if agreement is not None and agreement.alpha is not None and agreement.alpha < 0.3:
        yield Finding(
            f"Raters agree little: two of them prefer the same answer in {100 * agreement.share:.0f} % of cases "
            f"(Krippendorff's alpha {agreement.alpha:.2f}), which limits what a reward model can be right about."
        )


def _biases(split: SplitFacts) -> Iterator[Finding]:
    pair, better = split.lengths.pair, "chosen" if split.kind == "pairs" else "best"
    if pair is None:
        return
    differing = pair.pairs - pair.equal
    longer = pair.share_longer
    if longer is not None and differing >= _FEW and abs(longer - 0.5) > 0.1:
        which, share = ("longer", longer) if longer > 0.5 else ("shorter", 1 - longer)
        yield Finding(
            f"The {better} answer is the {which} one in {100 * share:.0f} % of pairs. A reward model can be right "
            "that often by counting length.",
            bad=abs(longer - 0.5) > 0.2,
        )
    for name, (count, good) in pair.features.items():
        error = math.sqrt(0.25 / max(count, 1))
        if count >= _FEW and abs(good / count - 0.5) > max(0.2, 3 * error):
            yield Finding(
                f"Where one answer alone has {name} ({count:,} pairs), it is the {better} one in {_share(good, count)}."
            )


def _texts(split: SplitFacts) -> Iterator[Finding]:
    texts = split.texts
    if texts.special:
        named = ", ".join(f"{token} {count:,}" for token, count in [*texts.special.items()][:8])
        yield Finding(
            f"Special tokens are written in the text ({split.unit} with each: {named}). A model takes them for ends "
            "and turns: take them out, or check the format.",
            bad=True,
        )
    for name, count in texts.odd.items():
        yield Finding(f"{_of(count, split)} hold {name}.")
    for name, (count, unfinished) in texts.unfinished.items():
        if unfinished > 0.05 * count and unfinished >= _FEW:
            yield Finding(
                f"{_share(unfinished, count)} of the {name} answers end within a sentence or within code."
            )
    for name, spread in split.lengths.parts.items():
        often = spread.counts[spread.longest]
        if name != "prompt" and often >= 10 and often > 0.005 * spread.count:
            yield Finding(
                f"{often:,} {name} answers have exactly {spread.longest:,} {split.lengths.unit}, and none more: "
                "were they cut there?"
            )


def _tokens(split: SplitFacts) -> Iterator[Finding]:
    tokens = split.tokens
    if tokens is None:
        return
    if tokens.start_twice:
        text = "have a start token behind their first token"
        yield Finding(
            f"{_of(tokens.start_twice, split)} {text}: the text or the template adds a second.",
            bad=True,
        )
    if 0 < tokens.no_start < split.records:
        yield Finding(
            f"{_of(tokens.no_start, split)} begin without a start token, the others with one.",
            bad=True,
        )
    if tokens.no_end:
        yield Finding(
            f"{tokens.no_end:,} answers end in no special token: nothing says where to stop.",
            bad=True,
        )
    if tokens.template and tokens.end_of_turn is None:
        yield Finding(
            "The chat template ends an answer with no special token; EOS is put behind each."
        )
    if tokens.cut_prompts:
        yield Finding(
            f"{_of(tokens.cut_prompts, split)} have a prompt that the chat template renders otherwise once an answer "
            "follows; rollouts from them would begin with other tokens."
        )
