"""A headless Chromium, a page as its visitor has it, and HTML as a list of elements."""

import os
import shutil
from html.parser import HTMLParser

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
DESKTOP, PHONE = (1200, 880), (390, 844)
HOSTILE = "<img src=x onerror=window.hacked=1> ${window.hacked=1} {{hacked}} \" onfocus='window.hacked=1'"


def start_chromium(profile) -> webdriver.Chrome:
    """A browser with a new profile in a folder; the test is skipped where there is none, but not in CI."""
    if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
        pytest.skip("there is no chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or "chromium"
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER or "chromedriver"))
    driver.set_script_timeout(60)
    return driver


class Page:
    """The page as a visitor has it."""

    def __init__(self, driver, url, size):
        self.driver = driver
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(url)

    def until(self, condition):
        # What was found may be drawn anew before it is read: look again.
        wait = WebDriverWait(self.driver, 60, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def words(self, sentence=1) -> list[str]:
        """In one go, since the page may change meanwhile."""
        code = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
        return self.script(code, f"#results section:nth-of-type({sentence}) .word .name")

    def box(self, name):
        return self.all(f"#{name} textarea, #{name} input")[0]

    def write(self, name, text):
        self.box(name).send_keys(Keys.CONTROL, "a")
        self.box(name).send_keys(text)

    def value(self, name) -> str:
        return self.box(name).get_property("value")

    def shades(self) -> list[float]:
        cells = "[...document.querySelectorAll('#stage .cells rect')]"
        return self.script(f"return {cells}.map(each => Number(each.style.fillOpacity))")

    def status(self) -> str:
        return self.script("return document.querySelector('#stage .status').textContent")

    def active(self) -> str:
        return self.script("return document.activeElement.getAttribute('aria-label') ?? document.activeElement.tagName")

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()


class Elements(HTMLParser):
    """Every element of a piece of HTML with its attributes; an open one at its end fails."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag, key=None):
        return [attributes for name, attributes in self.found if name == tag and (key is None or key in attributes)]
