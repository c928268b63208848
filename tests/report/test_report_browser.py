"""The page in a real browser: opened, clicked, measured, printed. Needs playwright (`.[browser]`) and a Chromium.

apt-get install chromium && pip install -e '.[browser]' && pytest -m slow tests/report/test_report_browser.py
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import arm_records, base_records, write_arm

from src.report.page import PAGE_FILE
from src.report.write import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install -e '.[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,  # a browser starts, and opens the page a dozen times
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; apt-get install chromium"),
]

FLAGS = ["--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update"]
ARMS = {
    "compound": [0.921, 0.924, 0.9225],
    "depth": [0.901, 0.902, 0.9],
    "dwr-fast": [0.918, 0.915, 0.919],
    "resolution": [0.915, 0.917, 0.912],
    "width": [0.91, 0.905, 0.908],
}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SEED = ".cost:not([hidden]) svg.plot:visible .mark[aria-label^='depth 2x, seed 1:']"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    study = tmp_path_factory.mktemp("outputs") / "five"
    for run in [*arm_records(ARMS, params=9_000_000), *base_records([0.89, 0.892, 0.888], params=4_000_000)]:
        write_arm(study, run, cam=run.seed == 0)
    return (write_report(study).folder / PAGE_FILE).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # Chromium has no sandbox for root
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


class Visit:
    """An opened page, with all that its console said and all that it asked for."""

    def __init__(self, browser: Any, address: str, size: dict[str, int], scheme: str, script: bool) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(
            viewport=size, color_scheme=scheme, reduced_motion="reduce", java_script_enabled=script
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page; at the end its console must have stayed silent, and nothing but itself have been loaded."""
    visits = []

    def go(size: dict[str, int] = DESKTOP, scheme: str = "light", script: bool = True) -> Any:
        visits.append(Visit(browser, address, size, scheme, script))
        return visits[-1].page

    yield go
    for one in visits:
        one.context.close()
        assert one.said == []
        assert {url for url in one.asked if not url.startswith("data:")} == {address}


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"#results tbody tr > :nth-child({number})").all_inner_texts()
    return [cell.strip() for cell in cells]


def test_a_click_on_a_heading_sorts_up_and_then_down(visit: Any) -> None:
    page = visit()
    before = column(page, 1)
    heading = page.locator("#results thead th", has_text="test accuracy")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    values = [float(text.split(" ")[0]) for text in column(page, 3)]
    assert values == sorted(values) and column(page, 1) != before
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split(" ")[0]) for text in column(page, 3)] == values[::-1]
    assert page.locator("[aria-sort=descending]").count() == 1
    page.locator("#results thead th").first.get_by_role("button").click()
    assert column(page, 1) == sorted(before)


def test_the_second_row_of_headings_sorts_its_own_column(visit: Any) -> None:
    page = visit()
    page.locator("#built thead tr:nth-child(2) th", has_text="realised").nth(1).get_by_role("button").click()
    depths = page.locator("#built tbody tr > :nth-child(6)").all_inner_texts()
    assert [float(text) for text in depths] == sorted(float(text) for text in depths) and float(depths[-1]) == 1.9


def test_the_chosen_cost_switches_the_figure(visit: Any) -> None:
    page = visit()
    shown = page.locator(".cost:visible")
    assert shown.count() == 1 and "FLOPs" in shown.locator("svg:visible").text_content()
    page.select_option("#cost", "params")
    assert shown.count() == 1 and shown.get_attribute("data-cost") == "params"
    assert "parameters, logarithmic" in shown.locator("svg:visible").text_content()


def test_hovering_names_the_run_and_a_click_tells_all_of_it(visit: Any) -> None:
    page = visit()
    tip, dialog = page.locator("#tip"), page.locator("#origin")
    page.locator(SEED).hover()
    assert tip.is_visible() and "depth-2x-seed1" in tip.inner_text() and "0123abcd" in tip.inner_text()
    page.mouse.move(2, 2)
    assert not tip.is_visible() and not dialog.is_visible()
    page.locator(SEED).click()
    text = dialog.inner_text()
    assert dialog.is_visible() and "depth 2x, seed 1: 90.20 %" in text
    assert "config" in text and "weights" in text and "0123abcd" in text
    link = dialog.get_by_role("link")
    assert re.fullmatch(r"\./depth-2x-seed1-[0-9a-f]{8}/record\.json", link.get_attribute("href"))
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("#results tbody tr", has_text="width").get_by_role("button", name="90.77").click()
    assert dialog.locator("h3").count() == 3 and "91.00" in dialog.inner_text() and "90.50" in dialog.inner_text()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def test_marks_can_be_walked_without_a_mouse(visit: Any) -> None:
    page = visit()
    first = page.locator(".cost:not([hidden]) svg.wide .mark").first
    first.focus()
    page.keyboard.press("ArrowRight")
    active = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(active) == page.locator(".cost:not([hidden]) svg.wide .mark").nth(1).get_attribute(
        "aria-label"
    )
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#origin").is_visible()


def test_a_pressed_arm_stands_out_everywhere(visit: Any) -> None:
    page = visit()
    page.locator("#accuracy .arm", has_text="depth").click()
    assert page.locator(".arm[aria-pressed=true]").all_inner_texts() == ["depth", "depth"]  # both legends agree
    assert page.locator("#results tr.faded").count() == 5
    assert page.locator("#curves [data-arm].faded").count() > 20
    page.locator("#curves .arm", has_text="depth").click()
    assert page.locator(".faded").count() == 0


def lightness(page: Any, selector: str, what: str) -> float:
    colour = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{what}")
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / (3 * 255)


def test_it_follows_the_systems_theme_until_told_otherwise(visit: Any) -> None:
    page = visit(scheme="dark")
    ground, text = lightness(page, "body", "backgroundColor"), lightness(page, "#curves svg text", "fill")
    assert ground < 0.15 and text > 0.8
    page.emulate_media(color_scheme="light")
    assert lightness(page, "body", "backgroundColor") == 1
    page.get_by_role("button", name="Dark").click()
    assert lightness(page, "body", "backgroundColor") < 0.15
    page.emulate_media(media="print")
    assert lightness(page, "body", "backgroundColor") == 1 and lightness(page, "#curves svg text", "fill") < 0.15
    assert not page.locator("nav").is_visible() and not page.locator("#theme").is_visible()


def test_a_phone_scrolls_down_and_never_sideways(visit: Any) -> None:
    page = visit(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    boxes = page.locator(".scroll")
    assert boxes.evaluate_all("boxes => boxes.some(box => box.scrollWidth > box.clientWidth)")
    assert page.locator(".cost:not([hidden]) svg.narrow").is_visible()
    assert not page.locator(".cost:not([hidden]) svg.wide").is_visible()
    sizes = "texts => texts.map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"
    assert min(page.locator("svg.plot:visible text").evaluate_all(sizes)) >= 9.5  # pixels
    page.locator(SEED).click()
    box = page.locator("#origin").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


def test_it_can_be_read_without_its_script(visit: Any) -> None:
    page = visit(script=False)
    assert page.locator(".cost:visible").count() == 1 and page.locator("#results td").count() > 60
    assert page.locator("#cost").is_visible() is False and page.locator("#theme").is_visible() is False


def test_it_prints_on_a_few_sheets(visit: Any, tmp_path: Path) -> None:
    page = visit()
    sheets = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", sheets)) <= 8
