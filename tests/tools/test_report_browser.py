"""The report in a real browser: drawn, readable on a desktop and a phone, hostile names escaped."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.browser import Browser, find_chromium
from tests.support.study_records import IMAGE, SCRIPT, rich, small, trial
from tune.records.folder import read_records
from tune.report.page import write_report

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PLOTS = """
[...document.querySelectorAll('.plotly-graph-div')].map(div => {
  const boxes = [...div.querySelectorAll('svg.main-svg, canvas')].map(e => e.getBoundingClientRect())
  const width = Math.max(0, ...boxes.map(box => box.width))
  const height = Math.max(0, ...boxes.map(box => box.height))
  const marks = div.querySelectorAll('.trace, .hm, canvas.gl-canvas-focus').length
  return [div.id, width, height, marks]
})
"""
"""For each plot of a page: its name, width and height in pixels, and the number of drawn traces and cells."""
# A wide table may scroll in its own box. The page must not scroll sideways.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with Browser(chromium, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    hostile = read_records(rich(folder / "hostile", hostile=True))
    goals = read_records(rich(folder / "goals", goals=("objective", "seconds")))
    poor = replace(small(folder / "poor"), trials=(trial(0),), confirmation=None, final_test=None)
    return {
        name: write_report(records).path
        for name, records in {"hostile": hostile, "goals": goals, "poor": poor}.items()
    }


def assert_sound(browser: Browser, page: Path) -> None:
    """No script failed, nothing but the page was fetched, and nothing injected ran."""
    assert browser.errors == []
    # Plotly draws heat maps as images that it generates in the browser.
    fetched = [url for url in browser.requests if not url.startswith("data:image/png;base64,")]
    assert fetched == [page.resolve().as_uri()]
    assert browser.js("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    assert browser.js("document.querySelectorAll('[src], [onerror], [onload]').length") == 0


def test_verdict_and_final_test_are_on_the_first_screen(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], **DESKTOP)
    boxes = "['#verdict', 'table'].map(n => document.querySelector(n).getBoundingClientRect().bottom)"
    assert max(browser.js(boxes)) < DESKTOP["height"]


def test_hostile_names_are_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"], **DESKTOP)
    text = browser.js("document.body.innerText")
    assert f"dtd{SCRIPT}" in text
    assert f"eurosat{IMAGE}" in text
    ticks = browser.js("[...document.querySelectorAll('#plot-pairs .ytick text')].map(t => t.textContent)")
    assert ticks == ["dtd<script>alert(1)</sc…", 'eurosat"><img src=x one…']
    labels = browser.js(
        "[...document.querySelectorAll('#plot-slice-1 text, #plot-slice-2 text')].map(t => t.textContent)"
    )
    assert any("<script>" in label for label in labels)


SEARCH = {"history", "curves", "accuracies"}
METRICS = {"confusion-1", "confusion-2", "calibration-1", "calibration-2"}
WHOLE = {*SEARCH, *METRICS, "importance", "slice-1", "slice-2", "tested", "pairs"}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    ("name", "plots"), [("hostile", WHOLE), ("goals", WHOLE | {"pareto"}), ("poor", SEARCH)]
)
def test_everything_is_drawn(
    browser: Browser, pages: dict[str, Path], name: str, plots: set[str], size: dict[str, int]
) -> None:
    browser.open(pages[name], **size)
    assert_sound(browser, pages[name])
    drawn = browser.js(PLOTS)
    assert {plot for plot, *_ in drawn} == {f"plot-{plot}" for plot in plots}
    for plot, width, height, marks in drawn:
        assert 200 < width <= size["width"], f"{plot} is cut or invisible"
        assert height > 100, plot
        assert marks > 0, plot
    assert browser.js(OVERFLOW) <= 0
    top = browser.js("document.querySelector('#verdict').getBoundingClientRect().top")
    assert 0 < top < size["height"] / 4


def test_what_goes_wrong_is_noticed(browser: Browser, tmp_path: Path) -> None:
    """The page does all that the above tests forbid, so that their checks must find it."""
    page = tmp_path / "page.html"
    page.write_text(
        "<body><p style='width: 3000px'>wide</p><script>console.error('one')</script>"
        "<script>throw Error('two')</script><script>alert('three')</script><img src='missing.png'></body>"
    )
    browser.open(page, **PHONE)
    assert len(browser.requests) == 2
    for word in ("one", "two", "dialog: three", "ERR_FILE_NOT_FOUND"):
        assert any(word in error for error in browser.errors), word
    assert browser.js(OVERFLOW) > 1000
