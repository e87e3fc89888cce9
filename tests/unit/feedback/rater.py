"""A rater at the page in Chromium."""

from collections.abc import Iterator
from typing import Any

import pytest


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

    def answers(self) -> list[Any]:
        """The elements of the two answers, A first."""
        return list(self.browser.find_elements("css selector", ".answer .text"))

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
