"""The app in a headless Chromium, as people use it: `make app-test`. Screenshots are kept in outputs/app."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ncpl.views.inputs import from_query
from tests.app.load import ask
from tests.app.server import ROOT, served
from tests.test_views import OWN_RUNS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make app-test")
pytest.importorskip("gradio", reason="gradio is not installed: make app-test")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = ROOT / "outputs" / "app" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = ROOT / "outputs" / "app"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")]

TABS = {
    "Forecast": "Forecast",
    "Compare": "Compare",
    "Curve": "Forecast the curve",
    "Sweep": "Sweep",
    "Plan": "Plan",
    "Benchmarks": "Forecast the scores",
}


@pytest.fixture(scope="module")
def address():
    with served() as found:
        yield found.address


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, browser, address):
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.faults = []
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".ncpl-headline", timeout=60_000)
    yield page
    assert page.faults == []
    page.close()


def answered(page, tab):
    """Asks a tab, and gives its answer's text."""
    page.get_by_role("tab", name=tab, exact=True).click()
    shown = page.locator("[role=tabpanel]:visible")
    page.get_by_role("button", name=TABS[tab], exact=True).click()
    page.wait_for_function("address => location.search.includes(address)", arg=f"tab={tab.lower()}")
    shown.locator(".ncpl-headline, .ncpl-error").wait_for()
    return shown.locator(".ncpl-answer, .ncpl-error").inner_text()


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_answers_and_fits(page, tab):
    text = answered(page, tab)
    assert re.search(r"[0-9]", text)
    assert page.locator("[role=tabpanel]:visible svg[role=img]").count() >= 1
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=SHOTS / f"{tab.lower()}-{width}.png", full_page=True)


def test_what_is_typed_is_forecast_and_comes_back_from_the_address(page):
    page.get_by_role("textbox", name="Learning rate").fill("0.001")
    page.get_by_label("Further fields").fill("warmup: 500")
    page.get_by_role("button", name="Forecast", exact=True).click()
    page.wait_for_function("() => location.search.includes('learning+rate=0.001')")
    said = page.locator(".ncpl-headline").first.inner_text()
    page.reload()
    page.wait_for_selector(".ncpl-headline")
    assert page.get_by_role("textbox", name="Learning rate").input_value() == "0.001"
    assert page.get_by_label("Further fields").input_value() == "warmup: 500"
    assert page.locator(".ncpl-headline").first.inner_text() == said


def test_the_keyboard_is_enough(page):
    box = page.get_by_role("textbox", name="Learning rate")
    box.focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("0.002")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.search.includes('learning+rate=0.002')")
    page.get_by_role("tab", name="Forecast", exact=True).focus()
    summary = page.locator("[role=tabpanel]:visible summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("[role=tabpanel]:visible details[open] table").is_visible()


def test_a_bad_value_names_its_field_and_keeps_the_others(page):
    page.get_by_label("Model size").fill("70B")
    page.get_by_label("Batch size").fill("many")
    page.get_by_role("button", name="Forecast", exact=True).click()
    alert = page.locator("[role=alert].ncpl-error")
    alert.wait_for()
    assert "batch size: got 'many'" in alert.inner_text()
    assert page.get_by_label("Model size").input_value() == "70B"
    page.screenshot(path=SHOTS / f"error-{page.viewport_size['width']}.png", full_page=True)


def test_files_are_read_or_refused_in_words(page, tmp_path):
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text("{")
    config = {
        "source": "marin",
        "model size": 134,
        "data size": 2.7,
        "optimizer": "muon",
        "lr": 4e-3,
        "batch size": 128,
    }
    good.write_text(json.dumps(config))
    page.get_by_role("button", name="Paste or upload a configuration").click()
    page.locator("input[type=file]").first.set_input_files(bad)
    page.get_by_text("bad.json").first.wait_for()
    page.get_by_role("button", name="Read and forecast").click()
    page.locator(".ncpl-error").wait_for()
    assert "bad.json: not JSON" in page.locator(".ncpl-error").inner_text()
    assert page.get_by_label("Model size").input_value() == "302"
    page.get_by_label("Clear").or_(page.get_by_label("Remove this file")).first.click()
    page.locator("input[type=file]").first.set_input_files(good)
    page.get_by_text("good.json").first.wait_for()
    page.get_by_role("button", name="Read and forecast").click()
    page.wait_for_function("() => location.search.includes('model+size=134')")
    assert page.get_by_label("Model size").input_value() == "134"


def test_own_runs_are_learnt_and_downloaded(page, tmp_path):
    file = tmp_path / "own.csv"
    file.write_text(OWN_RUNS)
    page.get_by_role("tab", name="Your runs").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(file)
    page.get_by_text("own.csv").first.wait_for()
    page.get_by_role("button", name="Learn from these runs").click()
    page.get_by_text("is learnt from").wait_for(timeout=90_000)
    page.screenshot(path=SHOTS / f"runs-{page.viewport_size['width']}.png", full_page=True)
    with page.expect_download() as zipped:
        page.get_by_role("link", name="Adapted checkpoint (ZIP)").click()
    assert zipped.value.suggested_filename == "mine.zip"
    text = answered(page, "Forecast")
    assert "'mine' is not among" not in text


def test_a_session_that_lost_its_runs_is_told(address, tmp_path):
    """The app keeps the last sessions only; whose own source is gone is told to upload again."""
    from gradio_client import Client, handle_file

    file = tmp_path / "own.csv"
    file.write_text(OWN_RUNS)
    client = Client(address, verbose=False)
    values = from_query("")[1]
    learnt = client.predict([handle_file(str(file))], *values.values(), api_name="/runs")
    assert "is learnt from" in learnt[1]
    mine = {**values, "source": "mine"}
    assert "upload them again" not in client.predict(*mine.values(), api_name="/forecast")[1]
    # More sessions than the app keeps.
    for _ in range(250):
        ask(address, "forecast", 0)
    lost = client.predict(*mine.values(), api_name="/forecast")[1]
    assert "what was learnt from the runs of mine is no longer kept here" in lost
    assert "upload them again" not in client.predict(*values.values(), api_name="/forecast")[1]


def test_the_table_and_the_figure_are_downloaded(page):
    for name, suffix in (("Table (CSV)", "csv"), ("Figure (SVG)", "svg")):
        with page.expect_download() as found:
            page.get_by_role("link", name=name).first.click()
        content = Path(found.value.path()).read_text()
        assert found.value.suggested_filename == f"forecast.{suffix}"
        assert content.startswith("loss," if suffix == "csv" else "<svg")


@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_no_serious_issue(page, tab):
    if not AXE.is_file():
        pytest.skip(f"no axe-core at {AXE}: make app-test")
    answered(page, tab)
    # Answers fade in.
    page.wait_for_timeout(500)
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    serious = {
        issue["id"]: [node["html"][:200] for node in issue["nodes"]][:3]
        for issue in found
        if issue["impact"] in ("serious", "critical")
    }
    assert serious == {}
