"""The page, in a real browser: it opens without a network, draws what it says, and shows nothing as markup."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from tests.audit.lines import RECORDINGS, SHIPPED, UNFINISHED, findings, run, slot
from vmmd_client.audit import audit_file
from vmmd_client.audit.page import page
from vmmd_client.audit.recording import Audited

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = Options()
    options.binary_location = BROWSER or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def shown(browser: WebDriver, tmp_path: Path, audited: Audited) -> None:
    path = tmp_path / "page.html"
    path.write_text(page([audited]))
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []


def test_the_page_needs_nothing_from_outside_and_forbids_it() -> None:
    text = page([audit_file(str(SHIPPED))])
    assert "default-src 'none'" in text
    assert not any(word in text for word in ("http://", "https://", "src=", "<link", "@import"))


def test_a_name_from_a_recording_is_text_and_never_markup() -> None:
    found, reader = findings([slot(0, 0, 0, 4096)])
    text = page([Audited('<script>alert(1)</script>"\x1b', found, reader.lines, 0, cut_off=False)])
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x1b" not in text


def test_a_very_long_recording_makes_a_page_of_bounded_size() -> None:
    lines = [slot(0, 0, 0, 4096), run(0.1, tail=UNFINISHED)]
    for number in range(1_500):
        lines += [slot(1 + number, 0, 0, 0), slot(1.001 + number, 0, 0, 4096)]
    found, reader = findings(lines)
    text = page([Audited("long", found, reader.lines, 0, cut_off=False)])
    assert "1,051 updates that matter least are not shown here" in text
    assert "updates 1 to 500 of 1501 are drawn" in text
    assert len(text) < 4_000_000


def test_of_many_vms_those_with_most_to_show_are_shown() -> None:
    lines = [slot(number, 0, 0, 4096, fd=100 + number) for number in range(20)]
    lines += [slot(100, 0, 0, 0, fd=119), slot(100.001, 0, 0, 4096, fd=119)]
    found, reader = findings(lines)
    text = page([Audited("many", found, reader.lines, 0, cut_off=False)])
    assert text.count("<section") == 12
    assert "VM (fd 119)" in text
    assert "8 other VMs with less to show are left out" in text


@in_a_browser
def test_the_boot_of_qemu_is_shown_with_its_two_exposed_updates(browser: WebDriver, tmp_path: Path) -> None:
    shown(browser, tmp_path, audit_file(str(SHIPPED)))
    assert browser.find_element(By.TAG_NAME, "h1").text == "2 of 11 memory map updates exposed"
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == 11
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr[data-kind=exposed]")) == 2
    pictures = browser.find_elements(By.CSS_SELECTOR, "svg.picture")
    assert all(picture.get_attribute("aria-label") for picture in pictures)
    assert all(picture.size["height"] > 30 for picture in pictures[:2])
    lanes = [text.text for text in pictures[0].find_elements(By.TAG_NAME, "text")]
    assert {"updates", "thread 24707: vCPU 0", "thread 24708: vCPU 1"} <= set(lanes)
    assert browser.find_elements(By.CSS_SELECTOR, "svg.picture rect.missing.exposed")


@in_a_browser
def test_a_link_opens_its_update_and_the_keyboard_reaches_it(browser: WebDriver, tmp_path: Path) -> None:
    shown(browser, tmp_path, audit_file(str(SHIPPED)))
    link = browser.find_element(By.CSS_SELECTOR, "tbody tr[data-kind=exposed]:last-of-type a")
    link.send_keys(Keys.ENTER)
    (update,) = browser.find_elements(By.ID, "vm0-update-11")
    assert update.get_attribute("open") is not None
    assert browser.switch_to.active_element.text.startswith("update 11: 4 slot calls, exposed")
    assert "delete slot 5" in update.text


@in_a_browser
def test_the_filter_hides_what_is_not_asked_for(browser: WebDriver, tmp_path: Path) -> None:
    shown(browser, tmp_path, audit_file(str(RECORDINGS / "qemu-7.2-pam-dies.strace.gz")))
    button = browser.find_element(By.CSS_SELECTOR, "button[data-show=exposed]")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "true"
    rows = [row for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
    assert [row.find_element(By.TAG_NAME, "th").text for row in rows] == ["9"]


@in_a_browser
def test_four_hundred_updates_fit_the_page_and_only_pictures_scroll_sideways(
    browser: WebDriver, tmp_path: Path
) -> None:
    shown(browser, tmp_path, audit_file(str(RECORDINGS / "qemu-10.0-pam-lives.strace.gz")))
    assert browser.find_element(By.TAG_NAME, "h1").text == "No update exposed, of 407"
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert len(browser.find_elements(By.CSS_SELECTOR, "details")) == 407
