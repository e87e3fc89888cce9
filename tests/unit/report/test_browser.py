"""The page in a real browser: every plot is drawn, hovering shows values, both themes and widths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rlhf.cli import main
from lit_rlhf.models import Backbone, ModelSpec, export_reward
from lit_rlhf.report import Figures, Section, Series, line_plot, write_page
from lit_rlhf.testing import tiny_preferences, tiny_rankings, write_jsonl
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


def rated_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs as `inspect` and `evaluate-reward` have most to say of: votes, subsets, repetitions, hostile texts."""
    rows: list[dict[str, Any]] = [
        {**row, "p_chosen": (0.6, 0.8, 1.0)[n % 3], "subset": ("chat", "code", HOSTILE)[n % 3]}
        for n, row in enumerate(tiny_preferences(count))
    ]
    rows[0]["chosen"] += HOSTILE
    rows[1]["prompt"] += f"<eos> {'x' * 300}"  # a word that breaks nowhere
    rows[2]["rejected"] += "\n\n- a list\n- of things\n" * 20
    swapped = {**rows[3], "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    return [*rows, rows[4], swapped, {**rows[5], "rejected": rows[5]["chosen"]}]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    """The pages that `lit-rlhf data inspect` and `evaluate-reward` write, each with all its sections."""
    root = tmp_path_factory.mktemp("pages")
    models = []
    for seed in (0, 1):
        spec = ModelSpec(name=str(tiny_model_dir), init_seed=seed)
        backbone = Backbone.load(spec, lm_head=False, trainable=False)
        backbone.add_head("reward")
        models.append(root / f"a-reward-model-with-quite-a-long-name-{seed}")
        export_reward(backbone, models[-1], merge=True)
    write_jsonl(root / "pairs.jsonl", rated_pairs(60))
    write_jsonl(root / "val.jsonl", rated_pairs(12))
    write_jsonl(root / "rankings.jsonl", tiny_rankings(20, completions=4))
    data = ["--data", str(root / "pairs.jsonl"), "--perturbed", "12"]
    held, tokenizer = (["--val", str(root / "val.jsonl"), "--run", "5"], str(tiny_model_dir))
    one, two = (["--path", str(models[0])], ["--against", str(models[1])])
    commands = {
        "data": ["data", "inspect", str(root / "pairs.jsonl"), *held, "--tokenizer", tokenizer],
        "reward": ["evaluate-reward", *one, *data],
        "rewards": ["evaluate-reward", *one, *two, "--data", str(root / "rankings.jsonl")],
    }
    for name, words in commands.items():
        main([*words, "--output", str(root / f"{name}.html")])
    return {name: root / f"{name}.html" for name in commands}


@pytest.mark.parametrize("width", [420, 1200])
@pytest.mark.parametrize("name", ["data", "reward", "rewards"])
def test_pages_of_data_and_of_reward_models(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(pages[name].as_uri())  # an alert of a hostile text would end the next command
    for folded in browser.find_elements("css selector", "details:not([open]) > summary"):
        folded.click()

    def ask(script: str) -> Any:
        return browser.execute_script(f"return {script}")

    assert ask("performance.getEntriesByType('resource')") == []  # nothing is fetched
    assert browser.get_log("browser") == []
    assert (
        ask("[...document.querySelectorAll('.plot')].filter((p) => !p.querySelector('svg'))") == []
    )
    assert ask("document.querySelectorAll('.plot svg').length") >= 3
    assert ask("document.querySelectorAll('main img, main script, img[onerror]').length") == 0
    if name != "rewards":
        assert HOSTILE[:60] in ask("document.querySelector('main').textContent")
    assert ask("document.documentElement.scrollWidth") <= width
    plots, label = "[...document.querySelectorAll('.plot')]", ".role-legend-label text"
    legends = f"{plots}.map((p) => [p, ...p.querySelectorAll('{label}')])"
    beyond = "l.some((t) => t.getBoundingClientRect().right > p.getBoundingClientRect().right)"
    assert ask(f"{legends}.filter(([p, ...l]) => {beyond})") == []
    tables = ask(
        "[...document.querySelectorAll('table')].map((t) => [t.scrollWidth, t.parentElement.clientWidth])"
    )
    assert tables
    assert width == 420 or all(table <= room for table, room in tables)
    written = (
        "[...document.querySelectorAll('main *')].filter((e) => e.innerText && !e.children.length)"
    )
    sizes = ask(f"{written}.map((e) => parseFloat(getComputedStyle(e).fontSize))")
    assert min(sizes) >= 11
