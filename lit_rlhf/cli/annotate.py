"""`lit-rlhf annotate`: a page where people compare answers, and preference data made of what they say."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_rlhf.cli.export import newest
from lit_rlhf.cli.functions import Special
from lit_rlhf.cli.output import print_text
from lit_rlhf.data import Format, Source
from lit_rlhf.data.sources import given_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.evaluation import ModelScorer, disagreements
from lit_rlhf.feedback import LabelStore, Pair, export_preferences, read_pairs

SPECIAL: Special = {
    "data": {"nargs": "?", "type": str | None},
    "--attributes": {"nargs": "+", "type": str},
    "--ensemble": {"nargs": "+", "type": str},
}


def annotate(
    data: str | None = None,
    output: Path = Path("labels"),
    source: Source | None = None,
    format: Format | None = None,
    skip_invalid: bool = False,
    uncertainty: str | None = None,
    ensemble: list[str] | None = None,
    raters_per_pair: int = 2,
    attributes: list[str] | None = None,
    comments: bool = False,
    markdown: bool = True,
    instructions: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    seed: int = 0,
    export: Path | None = None,
) -> None:
    """Let people compare answers on a page of this machine; votes go to a directory, from there to a preference file.

    `lit-rlhf annotate pairs.jsonl --output labels` starts it, and started again goes on where it was; `lit-rlhf
    annotate --output labels --export preferences.jsonl` writes what PreferenceDataModule reads. See docs/ANNOTATE.md.

    Args:
        data: JSONL, JSON, CSV or Parquet with two answers (or more, all pairs of them) per row, or a directory of the
            `datasets` library.
        output: Directory of the votes (`labels.sqlite`).
        source: Rows from elsewhere, instead of a file: HubSource and its kin.
        format: How a row becomes answers. Default: columns prompt, chosen and rejected, or prompt and completions.
        skip_invalid: Leave out rows that can't be used, and say how many, rather than stop.
        uncertainty: Column with a number per row; the most uncertain pairs are asked first. Default: random order.
        ensemble: Reward models on whose disagreement it depends instead which pairs are asked first: a checkpoint
            trained with HeadEnsemble, or the directory of its run's checkpoints; or two and more models.
        raters_per_pair: How many raters judge each pair.
        attributes: What is asked beside the overall choice, as in --attributes helpful harmless.
        comments: Offer a field for free text.
        markdown: Render Markdown; false shows texts as they are written.
        instructions: What raters are told at the start.
        host: Address to listen on; others than this machine's own need a token.
        port: 0 takes a free one.
        token: What visitors must know; made where it is needed and not given.
        seed: Of the order of pairs and of answers.
        export: Write the votes to this JSONL, and start no page.
    """
    if export is not None:
        if data is not None or source is not None or uncertainty is not None or ensemble:
            raise ConfigurationError(
                "--export writes the votes there are: leave out the data to annotate, --uncertainty and --ensemble, "
                "which say what is asked first."
            )
        exported = export_preferences(LabelStore(output, create=False), export)
        print_text(f"{exported}\n")
        return
    complaint = "Give either a file to annotate or --source, or --export FILE."
    source = given_source(data, source, complaint)
    from lit_rlhf.feedback.web import Page, serve  # noqa: PLC0415  (needs more of the extra than an export)

    page = Page(attributes or (), comments, markdown, instructions)
    if uncertainty is not None and ensemble:
        raise ConfigurationError(
            "--uncertainty and --ensemble both say which pairs are asked first: give one of them."
        )
    pairs = read_pairs(source, format, uncertainty, "drop" if skip_invalid else "error")
    if ensemble:
        pairs = _ranked(pairs, ensemble)
    store = LabelStore(output, raters_per_pair, seed)
    new = store.add(pairs)
    others = len(store.pairs()) - len(pairs)
    beside = f"; {others} others of earlier starts are asked and exported as well" if others else ""
    print_text(f"{len(pairs)} pairs, {new} of them new, in {store.path}{beside}\n")
    serve(store, page, host=host, port=port, token=token)


def _ranked(pairs: Sequence[Pair], ensemble: Sequence[str]) -> list[Pair]:
    """Pairs with what reward models' disagreement says of them."""
    scorers = [ModelScorer.load(newest(path)) for path in ensemble]
    found = disagreements(scorers, [(each.prompt, each.first, each.second) for each in pairs])
    known = [each for each in found if each is not None] or [0.0]
    print_text(
        f"asked first: where the reward models disagree most (deviation of the margin {min(known):.3g} to "
        f"{max(known):.3g}); {found.count(None)} pairs are longer than they read, and come last\n"
    )
    return [replace(pair, uncertainty=each) for pair, each in zip(pairs, found, strict=True)]
