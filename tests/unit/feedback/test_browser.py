"""Two raters at the page in Chromium: by keys alone, over a reload, hostile texts and a kill of the server."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.feedback import LabelStore
from lit_rlhf.testing import write_jsonl
from tests.unit.feedback.server import running

pytestmark = pytest.mark.browser

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>[x](javascript:window.hit=1)"


@pytest.fixture
def browsers() -> Iterator[list[Any]]:
    from selenium import webdriver

    opened = []
    for _ in range(2):
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
            options.add_argument(argument)
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        opened.append(webdriver.Chrome(options=options, service=service))
    yield opened
    for browser in opened:
        browser.quit()


class Rater:
    """A person who uses the keyboard alone."""

    def __init__(self, browser: Any, url: str, name: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.wait = browser, WebDriverWait(browser, 10)
        browser.get(url)
        self.press(*name, "\ue007")  # the field has the focus; Enter
        self.wait.until(lambda _: self.pair() is not None)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def pair(self) -> int | None:
        number = self.browser.execute_script(
            "return document.querySelector('form[data-pair]')?.dataset.pair"
        )
        return int(number) if number else None

    def text(self) -> str:
        return str(self.browser.find_element("tag name", "main").text)

    def answer(self, *keys: str) -> int:
        """Press keys, the last of which leads to another page; the pair that was answered."""
        before = self.pair()
        assert before is not None
        self.press(*keys)
        self.wait.until(lambda _: self.pair() != before)
        return before

    def problems(self) -> list[Any]:
        """What the browser complains of, but that the server was away, which htmx says too."""
        log = self.browser.get_log("browser")
        return [entry for entry in log if entry["source"] not in ("network", "console-api")]


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
        server.end(signal.SIGKILL)
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
