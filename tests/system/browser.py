"""A headless Chromium that is used as a person would: look for something, click it, wait for what appears."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

WAIT_SECONDS = 10
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1500",
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@contextmanager
def browser(profile: Path) -> Iterator["Page"]:
    """Skips the test where Chromium is not installed. `profile`: a new folder."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (on Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Page(chrome)
    finally:
        chrome.quit()


class Page:
    """Elements are named by CSS selectors; each is waited for."""

    def __init__(self, chrome) -> None:
        self._chrome = chrome

    def open(self, url: str) -> None:
        self._chrome.get(url)

    def click(self, selector: str) -> Self:
        self._wait(lambda: self._click(selector), f"{selector} to be clicked")
        return self

    def type(self, selector: str, text: str) -> Self:
        self._wait(lambda: self._visible(selector), f"{selector} to be there")
        self._find(selector).send_keys(text)
        return self

    def text(self, selector: str) -> str:
        return self._find(selector).text

    def wait_for(self, selector: str, text: str) -> None:
        self._wait(lambda: text in self.text(selector), f"{selector} to say {text!r}")

    def screenshot(self, path: Path) -> None:
        self._chrome.save_screenshot(str(path))

    def on_a_dark_phone(self) -> None:
        self._chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        self._chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)

    def width(self) -> int:
        return self._chrome.execute_script("return window.innerWidth")

    def width_of_content(self) -> int:
        return self._chrome.execute_script("return document.documentElement.scrollWidth")

    def complaints(self) -> list[str]:
        """What the browser says went wrong. A wrong key is answered with 401, which it mentions too."""
        messages = [entry["message"] for entry in self._chrome.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in messages if "401" not in message]

    def _find(self, selector: str):
        return self._chrome.find_element("css selector", selector)

    def _visible(self, selector: str) -> bool:
        return self._find(selector).is_displayed()

    def _click(self, selector: str) -> bool:
        self._find(selector).click()
        return True

    def _wait(self, fact, what: str) -> None:
        from selenium.common.exceptions import TimeoutException, WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        waiting = WebDriverWait(self._chrome, WAIT_SECONDS, 0.1, ignored_exceptions=(WebDriverException,))
        try:
            waiting.until(lambda _: fact())
        except TimeoutException:
            raise AssertionError(f"waited for {what}; the page says: {self.text('body')[:2000]}") from None
