"""Two raters at the page in Chromium: by keys alone, over a reload, hostile texts and a kill of the server."""

from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.feedback import LabelStore
from lit_rlhf.testing import write_jsonl
from tests import warm
from tests.unit.feedback.rater import Rater, browsers
from tests.unit.feedback.server import running

pytestmark = pytest.mark.browser
__all__ = ["browsers"]  # a fixture

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>[x](javascript:window.hit=1)"


def test_two_raters(browsers: list[Any], tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{HOSTILE} {i}", "chosen": f"first {HOSTILE}", "rejected": f"second {i}"}
        for i in range(5)
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "labels"
    options = [
        str(file),
        "--output",
        str(output),
        "--attributes",
        "helpful",
        HOSTILE,
        "--comments",
        "true",
    ]
    with running(*options, "--port", "0") as server:
        ann, bob = (
            Rater(b, server.url, n) for b, n in zip(browsers, ("ann", "bob <b>"), strict=True)
        )
        assert ann.pair() != bob.pair()
        assert HOSTILE in ann.text()
        shown_a = ann.browser.find_element("css selector", ".answer .text").text
        first = ann.answer(
            "1", "1", "2", "c", "good <i>", "\ue00c", "a"
        )  # attributes, a comment, Escape, A
        bobs = [bob.answer("\ue014"), bob.answer("s")]  # the right arrow: B; skip
        second = ann.pair()
        ann.browser.refresh()
        assert ann.pair() == second
        server.end(warm.KILL)
        ann.press("t")
        ann.wait.until(lambda _: ann.browser.find_element("id", "trouble").is_displayed())
        assert "not saved" in ann.browser.find_element("id", "trouble").text
        assert len(LabelStore(output).votes()) == 3
    with running(*options, "--port", server.port):
        assert ann.answer("t") == second
        assert not ann.browser.find_element("id", "trouble").is_displayed()
        third = ann.answer("f")
        ann.answer("u")
        assert ann.pair() == third
        ann.answer("b")  # corrects the flag
        votes = {vote.pair: vote for vote in LabelStore(output).votes("ann")}
        assert votes[first].verdict == ("first" if shown_a.startswith("first") else "second")
        assert votes[first].comment == "good <i>"
        assert votes[first].attributes["helpful"] == "tie"
        assert len(votes[first].attributes) == 2
        assert votes[second].verdict == "tie"
        assert votes[third].verdict in ("first", "second")
        assert [vote.pair for vote in LabelStore(output).votes("bob <b>")] == bobs
        for rater in (ann, bob):
            assert rater.browser.execute_script("return window.hit") is None
            assert rater.problems() == []
        for width in (1200, 420):
            bob.browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
            )
            size = bob.browser.execute_script(
                "return [document.documentElement.scrollWidth, innerWidth]"
            )
            assert size == [width, width]
