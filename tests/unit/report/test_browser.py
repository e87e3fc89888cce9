"""The page in a real browser: every plot is drawn, hovering shows values, both themes and widths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.report import Figures, Section, Series, line_plot, write_page
from tests.unit.report.test_page import HOSTILE, every_plot
from tests.unit.report.test_rounds_page import write_rounds

pytestmark = pytest.mark.browser


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield found
    found.quit()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1200])
def test_every_plot_is_drawn(browser: Any, tmp_path: Path, width: int, theme: str) -> None:
    seeds = Series(HOSTILE, range(40), range(40), [y - 1 for y in range(40)], range(1, 41))
    plots = [*every_plot(HOSTILE), *every_plot(), line_plot("seeds", [seeds])]
    plots.append(line_plot("long", [Series("a", range(2000), range(2000)), Series("b", [1], [1])]))
    path = write_page(tmp_path / "a.html", HOSTILE, [Section("a", [Figures(plots)])])
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    drawn = "return [...document.querySelectorAll('.plot')].filter((p) => p.querySelector('svg')).length"
    assert browser.execute_script(drawn) == len(plots)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (color == "rgb(245, 245, 242)") == (theme == "light")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [420, 1200])
def test_rounds_fit_the_window(browser: Any, tmp_path: Path, width: int) -> None:
    page = write_rounds(tmp_path / "rounds", f"{HOSTILE} {'x' * 200}")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = "const t = document.querySelector('table'); return [t.scrollWidth, t.parentElement.clientWidth]"
    table, room = browser.execute_script(sizes)
    assert table <= room or width == 420  # where it scrolls by itself
    assert browser.get_log("browser") == []


def test_hovering_shows_the_values_of_all_series(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    series = [
        Series(HOSTILE, [1, 2, 3], [0.25, 0.5, 0.75]),
        Series("runs/b.c", [1, 2, 3], [4, 5, 6]),
    ]
    path = write_page(tmp_path / "a.html", "a", [Section("a", [Figures([line_plot("p", series)])])])
    browser.get(path.as_uri())
    place = browser.find_element(By.CSS_SELECTOR, ".plot svg")
    middle = ActionChains(browser).move_to_element(place).move_by_offset(15, 0)
    middle.move_by_offset(1, 1).perform()
    tip = browser.find_element(By.ID, "tip")
    assert tip.is_displayed()
    assert HOSTILE in tip.text
    assert ("runs/b.c\n5" in tip.text) and ("0.5" in tip.text)
