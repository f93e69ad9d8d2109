"""The page in a real browser: it renders, can be read at both widths, and loads nothing."""

import os
from pathlib import Path

import pytest

from fxfuse.page.api import write_page
from tests.page import sample
from tests.page.browser import Browser, find_chromium

CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"

# .ci/run sets it, so that there the tests cannot be left out.
needed = os.environ.get("FXFUSE_NEED_CHROMIUM") == "1"
pytestmark = pytest.mark.skipif(
    find_chromium() is None and not needed, reason="no Chromium here: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
    assert find_chromium() is not None, "FXFUSE_NEED_CHROMIUM=1 is set, and there is no Chromium"
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    kinds = {
        "demo": sample.demo(),
        "huge": sample.huge(),
        "large": sample.large(),
        "hostile": sample.hostile(),
        "plan": {"plan": sample.demo()["plan"]},
        "stages": {"stages": sample.stages()},
    }
    return {name: write_page(folder / f"{name}.html", **parts) for name, parts in kinds.items()}


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    "name, charts", [("demo", 5), ("huge", 5), ("large", 5), ("hostile", 5), ("plan", 2), ("stages", 0)]
)
def test_it_renders_and_can_be_read(browser, pages, name, charts, width):
    for dark in (False, True)[: 1 if name in ("huge", "large") else 2]:  # large ones take a second each
        browser.open(pages[name], width, dark)
        found = browser.evaluate(CHECKS)
        assert found["wrong"] == []
        assert found["charts"] == charts
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]


@pytest.mark.parametrize("width", [1280, 900, 700, 400, 320])
def test_nothing_overflows_with_all_figures_shown(browser, pages, width):
    for name in ("demo", "hostile"):
        browser.open(pages[name], width)
        browser.evaluate(OPEN_ALL)
        assert browser.evaluate("document.scrollingElement.scrollWidth") <= width


def test_the_schemes_differ(browser, pages):
    colours = []
    for dark in (False, True):
        browser.open(pages["demo"], 1280, dark)
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(17, 21, 27)"]


def test_tables_become_cards_where_it_is_narrow(browser, pages):
    shown = {}
    for width in (1280, 400):
        browser.open(pages["demo"], width)
        shown[width] = browser.evaluate("getComputedStyle(document.querySelector('.cards td')).display")
    assert shown == {1280: "table-cell", 400: "flex"}


def test_paper_gets_the_wide_drawings_in_light_colours(browser, pages):
    browser.open(pages["demo"], 760, dark=True, media="print")
    found = browser.evaluate(
        "[document.scrollingElement.scrollWidth, getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.wide')).display,"
        " document.querySelector('.wide svg').clientWidth]"
    )
    assert found[0] <= 760
    assert found[1:3] == ["rgb(255, 255, 255)", "block"]
    assert found[3] < 760


def test_what_a_page_asks_for_would_be_seen(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<!doctype html><body><img src="http://127.0.0.1:9/x.png"><script>nothing()</script>')
    browser.open(page, 400)
    assert len(browser.requests()) == 2
    assert any("nothing is not defined" in each for each in browser.complaints())
    wrong = browser.evaluate(CHECKS)["wrong"]
    assert "active content" in wrong
    assert "IMG refers to http://127.0.0.1:9/x.png" in wrong
