"""A page: one file, hostile texts as text, the plots' numbers in it."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_rlhf.report import (
    Code,
    Figures,
    Interval,
    Note,
    Numbers,
    Plot,
    Sample,
    Samples,
    Section,
    Series,
    Table,
    bar_plot,
    histogram,
    interval_plot,
    line_plot,
    page,
    reliability_plot,
    scatter_plot,
    write_page,
)

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' {{ 7 * 7 }} &amp;\u2028"
)


class Reader(HTMLParser):
    """Tags, plots and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.specs: list[dict] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if given.get("class") == "plot":
            self.specs.append(json.loads(given["data-spec"] or "", parse_constant=int))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def every_plot(name: str = "a") -> list[Plot]:
    bins = [(0.6, 0.5, 10), (0.9, 0.95, 30)]
    return [
        line_plot(name, [Series(name, [1, 2, 3], [0.5, None, float("nan")])], levels={name: 1.0}),
        scatter_plot(name, {name: ([1.0, float("nan")], [2.0, 3.0])}, x=name, y=name),
        histogram(name, {name: [1.0, 2.0, 2.0, float("inf")]}, x=name, bins=2),
        bar_plot(name, {name: 3}),
        reliability_plot(name, {name: bins}),
        interval_plot(name, [Interval(name, 0.5, 0.4, 0.6)], x=name, level=0.5),
    ]


def test_hostile_texts_stay_texts_wherever_they_stand() -> None:
    blocks = [
        Figures(every_plot(HOSTILE)),
        Table([HOSTILE], [[HOSTILE]], HOSTILE, frozenset({0}), HOSTILE),
        Numbers([(HOSTILE, HOSTILE)]),
        Samples([Sample([(HOSTILE, HOSTILE)], {HOSTILE: HOSTILE}, HOSTILE)] * 2, HOSTILE, shown=1),
        Code(HOSTILE, HOSTILE),
        Code(HOSTILE, HOSTILE, folded=True),
        Note(HOSTILE),
    ]
    found = Reader(page(HOSTILE, [Section(HOSTILE, blocks, HOSTILE)], HOSTILE))
    plain = Reader(page("a", [Section("a", blocks[:0])]))
    assert found.tags.count("script") == plain.tags.count("script") == 3
    assert "img" not in found.tags
    assert found.texts.count(HOSTILE) > 15
    assert found.specs[0]["data"]["values"][0]["s"] == HOSTILE


def test_page_has_no_address_but_its_own_parts() -> None:
    found = Reader(page("a", [Section("b", [Figures(every_plot())])]))
    assert found.addresses == ["#part-1"]


def test_plots_hold_their_numbers_and_gaps() -> None:
    line, _, counts, *_ = Reader(page("a", [Section("b", [Figures(every_plot())])])).specs
    assert [(row["x"], row["y"]) for row in line["data"]["values"]] == [(1, 0.5), (2, None), (3, None)]  # fmt: skip
    assert [row["y"] for row in counts["data"]["values"]] == [1, 2, 0]


def test_equal_values_are_one_bar_around_them() -> None:
    rows = histogram("a", {"a": {7: 3}, "b": [7.0]}, x="a").spec["data"]["values"]
    assert [(row["x"], row["to"], row["y"], row["s"]) for row in rows] == [
        *((6.5, 7.5, 3, "a"), (7.5, 7.5, 0, "a")),
        *((6.5, 7.5, 1, "b"), (7.5, 7.5, 0, "b")),
    ]


@pytest.mark.parametrize(("last", "held"), [(99, 4), (30, 2), (29, 1), (3, 1)])
def test_bars_of_whole_numbers_hold_equally_many(last: int, held: int) -> None:
    plot = histogram("a", {"a": range(last + 1)}, x="a")
    *rows, end = plot.spec["data"]["values"]
    assert [row["to"] - row["x"] for row in rows] == [held] * len(rows)
    assert {row["y"] for row in rows[:-1]} == {held}, "each of its numbers once"
    assert sum(row["y"] for row in rows) == last + 1
    assert (rows[0]["x"], end["y"]) == (0, 0)


def test_the_smallest_and_the_largest_numbers_have_bars() -> None:
    for last in (5e-324, 2.0**53, 1e300):
        plot = histogram("a", {"a": [0, last]}, x="a")
        assert sum(row["y"] for row in plot.spec["data"]["values"]) == 2


def test_long_curves_keep_their_extremes() -> None:
    values = [0.0] * 5000
    values[1234], values[4321] = 9.0, -9.0
    kept = line_plot("a", [Series("a", range(5000), values)]).spec["data"]["values"]
    assert len(kept) <= 1000
    assert {(1234, 9.0), (4321, -9.0)} <= {(row["x"], row["y"]) for row in kept}


def test_series_differ_without_colour() -> None:
    spec = line_plot("a", [Series(str(i), [1, 2], [1, 2]) for i in range(8)]).spec
    dashes = spec["layer"][0]["encoding"]["strokeDash"]["scale"]["range"]
    assert len({tuple(dash) for dash in dashes}) == 8


def test_half_a_character_is_written_as_far_as_it_goes(tmp_path: Path) -> None:
    half = "\ud83d cut"
    block = Samples([Sample([("prompt", half)])])
    path = write_page(tmp_path / "a.html", half, [Section("s", [block])], data={"a": half})
    assert "? cut" in path.read_text(encoding="utf-8")
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == {"a": half}


def test_json_lies_beside_the_page(tmp_path: Path) -> None:
    curve = line_plot("Reward", [Series("a", [1, 2], [0.5, None])])
    path = write_page(tmp_path / "a.html", "t", [Section("Curves", [Figures([curve])])])
    beside = json.loads(path.with_suffix(".json").read_text())
    assert beside == {"Curves": {"Reward": {"a": {"x": [1, 2], "y": [0.5, None]}}}}
    assert path.read_text().rstrip().endswith("</html>")
