"""The pages in headless Chromium: nothing is requested, the console is empty, tables sort.

Screenshots are left in out/browser/.
"""

import base64
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.report import samples

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).parents[2] / "out" / "browser"
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
VIEWS = {"wide": (1200, 1600, "light"), "phone": (390, 844, "light"), "dark": (1200, 1600, "dark")}
KINDS = ("selection", "curves", "kernel")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    pytest.importorskip("selenium", reason="needs selenium: make browser")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("needs chromedriver: make browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for switch in SWITCHES.split():
        options.add_argument(switch)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # selenium must not look for a driver of its own
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages")
    for kind, text in samples.pages().items():
        (path / f"{kind}.html").write_text(text)
    noisy = '<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>'
    (path / "noisy.html").write_text(f"<!doctype html><title>noisy</title>{noisy}")
    return path


def opened(browser, path):
    """Opens a page; what it requested besides itself, and the console's messages."""
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(path.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = [e["params"]["request"]["url"] for e in sent]
    requested = [u for u in urls if u != path.as_uri() and not u.startswith("data:")]
    return requested, browser.get_log("browser")


def seen(browser, view):
    width, height, scheme = VIEWS[view]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": view == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_page_is_quiet_and_fits(browser, folder, kind, view):
    seen(browser, view)
    requested, messages = opened(browser, folder / f"{kind}.html")
    assert (requested, messages) == ([], [])
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= VIEWS[view][0]  # wide tables scroll within themselves
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (view != "dark")
    SHOTS.mkdir(parents=True, exist_ok=True)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (SHOTS / f"{kind}-{view}.png").write_bytes(base64.b64decode(shot["data"]))


def test_a_page_with_a_request_and_a_message_is_caught(browser, folder):
    requested, messages = opened(browser, folder / "noisy.html")
    assert requested == ["http://127.0.0.1:9/x.png"]
    assert any('"no"' in entry["message"] for entry in messages)


def column(browser, index):
    script = (
        "return [...document.querySelector('table').tBodies[0].rows]"
        ".map(row => row.cells[arguments[0]].dataset.value)"
    )
    return browser.execute_script(script, index)


def test_a_click_sorts_and_another_turns_round(browser, folder):
    opened(browser, folder / "selection.html")
    buttons = browser.find_elements("css selector", "table:first-of-type th button")
    names = [button.text for button in buttons]
    score, last = names.index("predicted loss"), names.index("p beats next")
    before = column(browser, score)
    assert len(before) == 3
    for reverse in (False, True):
        buttons[score].click()
        assert column(browser, score) == sorted(before, key=float, reverse=reverse)
    assert column(browser, score) != before
    for _ in range(2):  # what is not known stays last
        buttons[last].click()
        assert column(browser, last)[-1] == ""
