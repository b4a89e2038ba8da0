"""The page of `omit-hf browse` in a real browser.

    SENTENCE="a dragon face and a love hotel" \\
        pytest tests/test_library_page_in_browser.py --screenshots drawings.lance model_cards

makes the README's pictures library_desktop.png and library_phone.png, and prints how long a keystroke takes (with -s).
The library is of `load_image_text("data/emoji/cutouts", test_size=1000)["test"]`, each picture saved as a file, with
the model of emoji_composed.yaml.
"""

import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import DESKTOP, HOSTILE, PHONE, Page
from pages import ODD, copied, queue_request, save_library, serve
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from omit_hf.demo import data_url, library_page


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes, processor):
    return save_library(tmp_path_factory.mktemp("library"), scenes, processor)


@pytest.fixture(scope="module")
def demo(folder):
    return library_page.Demo(str(folder / "photos.lance"))


@pytest.fixture(scope="module")
def blocks(demo):
    blocks = serve(library_page, demo)
    yield blocks
    blocks.close()


def opened(chromium, blocks, size=DESKTOP) -> Page:
    page = Page(chromium, blocks.local_url, size)
    page.until(lambda: page.all("#wall .hint") and page.all("#sentence textarea, #sentence input"))
    return page


@pytest.fixture
def page(chromium, blocks):
    return opened(chromium, blocks)


def keys(page) -> list[str]:
    return page.script("return [...document.querySelectorAll('.tile')].map(each => each.dataset.key)")


def wanted(demo, sentence, where=None) -> list[str]:
    return [hit.metadata["key"] for hit in demo.library.search(sentence, 24, where)]


def look_for(page, demo, sentence):
    page.write("sentence", sentence)
    page.until(lambda: keys(page) == wanted(demo, sentence) and shown(page, demo, sentence, 0))


def shown(page, demo, sentence, rank) -> bool:
    """Whether the panel has the picture of this rank, and its words."""
    hit = demo.library.search(sentence, 24)[rank]
    title = page.script("return document.querySelector('#results h2')?.textContent")
    name = Path(hit.path).name
    return title == f"{name}score {hit.score:.3f}" and page.words() == [word.text for word in hit.words]


def loaded(page) -> bool:
    code = "return [...document.querySelectorAll('.tile img')].map(each => each.complete && each.naturalWidth)"
    return all(page.script(code))


def test_thumbnails_fill_their_tiles(page, demo):
    look_for(page, demo, "a red star")
    page.until(lambda: loaded(page))
    tile, image = (
        page.script(f"return document.querySelector('{each}').clientWidth") for each in (".tile", ".tile img")
    )
    assert tile == image > 90


def test_type_point_and_look(page, demo):
    look_for(page, demo, "two blue circles")
    page.until(lambda: loaded(page))
    assert "The best 24 of 31 pictures" in page.all("#wall .note")[0].text
    hits = demo.library.search("two blue circles", 24)

    ActionChains(page.driver).move_to_element(page.all(".tile")[4]).perform()
    page.until(lambda: shown(page, demo, "two blue circles", 4))
    assert [each.text for each in page.all("#results .share")] == [f"{word.matched:.0%}" for word in hits[4].words]
    assert Path(hits[4].path).name in page.status()
    image = page.script("return document.querySelector('#stage image').getAttribute('href')")
    assert image == data_url(Image.open(hits[4].path))

    word = page.all("#results .word")[1]
    ActionChains(page.driver).move_to_element(word).perform()
    mass = hits[4].alignment.mass
    page.until(lambda: page.shades() == pytest.approx(list(0.75 * (1 - mass[:, 1] / mass.max())), abs=2e-3))
    assert "“blue”" in page.status()


def test_a_click_holds_the_picture(page, demo):
    look_for(page, demo, "a red star")
    page.all(".tile")[2].click()
    page.until(lambda: shown(page, demo, "a red star", 2))
    ActionChains(page.driver).move_to_element(page.all(".tile")[5]).pause(0.5).perform()
    assert shown(page, demo, "a red star", 2)
    page.all(".tile")[2].click()
    ActionChains(page.driver).move_to_element(page.all(".tile")[5]).perform()
    page.until(lambda: shown(page, demo, "a red star", 5))


def test_by_keyboard_alone(page, demo):
    page.until(lambda: page.active() == "TEXTAREA" or page.script("return document.activeElement.matches('input')"))
    page.press("a red star")
    page.until(lambda: keys(page) == wanted(demo, "a red star"))
    page.press(Keys.TAB, Keys.TAB)
    assert page.active().startswith("1: ")
    wide = page.script(
        "const all = [...document.querySelectorAll('.tile')];"
        "return all.filter(each => each.offsetTop === all[0].offsetTop).length"
    )
    assert wide > 2
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: shown(page, demo, "a red star", 1))
    page.press(Keys.ARROW_DOWN)
    page.until(lambda: shown(page, demo, "a red star", 1 + wide))
    page.press(Keys.END)
    page.until(lambda: shown(page, demo, "a red star", 23))
    page.press(Keys.ARROW_RIGHT, Keys.HOME, Keys.ARROW_LEFT)
    page.until(lambda: shown(page, demo, "a red star", 0))
    page.press(Keys.ARROW_RIGHT, Keys.ENTER)
    page.until(lambda: shown(page, demo, "a red star", 1))
    assert [each.get_dom_attribute("aria-label")[:2] for each in page.all(".tile[aria-pressed=true]")] == ["2:"]
    page.press(Keys.TAB)
    page.until(lambda: page.active().startswith("a, "))
    page.until(lambda: any(page.shades()))
    page.press(Keys.TAB, Keys.TAB)
    page.until(lambda: "“star”" in page.status())


def test_only_the_last_request_counts(page, demo):
    for sentence in ("a", "a red", "a red star", "two", "two blue circles"):
        page.box("sentence").send_keys(Keys.CONTROL, "a")
        page.box("sentence").send_keys(sentence)
    page.until(lambda: keys(page) == wanted(demo, "two blue circles") and shown(page, demo, "two blue circles", 0))
    page.script("return new Promise(done => setTimeout(done, 500))")
    assert keys(page) == wanted(demo, "two blue circles")
    page.write("sentence", Keys.DELETE)
    page.until(lambda: page.all("#wall .hint") and not keys(page) and not page.words())


def test_a_filter_and_its_errors(page, demo):
    look_for(page, demo, "a red star")
    page.box("where").send_keys("path LIKE '%/0_.png'", Keys.ENTER)
    page.until(lambda: len(keys(page)) == 10)
    assert keys(page) == wanted(demo, "a red star", "path LIKE '%/0_.png'")
    page.write("where", "colour = 'red'")
    page.box("sentence").click()  # leaves the box
    page.until(lambda: page.all("#wall [role=alert]"))
    text = page.all("#wall [role=alert]")[0].text
    assert "which is no filter" in text
    assert "The columns are" in text
    assert not page.words()
    page.write("where", "year > 2030" + Keys.ENTER)
    page.until(lambda: "Nothing was found" in page.all("#wall")[0].text)
    page.write("where", Keys.DELETE + Keys.ENTER)
    page.until(lambda: keys(page) == wanted(demo, "a red star"))


def test_hostile_texts_stay_text(page, demo):
    page.write("sentence", HOSTILE)
    page.until(lambda: keys(page) == wanted(demo, HOSTILE))
    page.write("where", f"path LIKE '%{ODD[:4]}%'" + Keys.ENTER)
    page.until(lambda: len(keys(page)) == 1)
    page.until(lambda: page.all("#results h2") and ODD in page.all("#results h2")[0].text)
    page.all(".tile")[0].click()
    assert page.script("return window.hacked ?? null") is None
    images = page.script("return [...document.querySelectorAll('.gradio-container img')].map(each => each.src)")
    assert all("/thumbnails/" in image for image in images)


def test_on_a_phone(chromium, blocks, demo):
    page = opened(chromium, blocks, PHONE)
    look_for(page, demo, "a red star")
    page.until(lambda: loaded(page))
    page.script("arguments[0].scrollIntoView({block: 'end'})", page.all(".tile")[-1])
    page.all(".tile")[-1].click()  # a tap, as of a mobile
    page.until(lambda: shown(page, demo, "a red star", 23))
    assert page.script("return document.documentElement.scrollWidth") <= PHONE[0]
    edges = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom]"
    for part in ("#stage svg", "#results .words"):
        top, bottom = page.script(edges, part)
        assert 0 <= top < bottom <= PHONE[1]  # they stay in view
    page.all("#results .word")[1].click()
    page.until(lambda: any(page.shades()))
    look_for(page, demo, "a " + "very" * 30 + " red star")
    assert page.script("return document.documentElement.scrollWidth") <= PHONE[0]


def test_everything_has_a_name(page, demo):
    look_for(page, demo, "a red star")
    chromium = page.driver
    tree = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {"button", "textbox", "image", "img", "group"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in named]
    names = {node["name"]["value"] for node in nodes if node["role"]["value"] in ("button", "textbox")}
    assert {"What do you look for?", "Only pictures with (optional; Enter applies it)"} <= names
    assert len([name for name in names if re.match(r"\d+: ", name)]) == 24
    unnamed = [node for node in nodes if node["role"]["value"] in ("button", "textbox") and not node["name"]["value"]]
    assert unnamed == []


def test_pictures_that_vanish_say_so(request, folder, chromium, tmp_path):
    target = copied(folder, tmp_path)
    demo = library_page.Demo(str(target / "photos.lance"))
    blocks = serve(library_page, demo)
    request.addfinalizer(blocks.close)
    page = opened(chromium, blocks)
    paths = [hit.path for hit in demo.library.search("a red star", 24)]
    Path(paths[0]).unlink()
    size = os.stat(paths[1]).st_size
    Path(paths[1]).write_bytes(bytes(size))  # which only its thumbnail finds
    page.write("sentence", "a red star")
    page.until(lambda: len(page.all(".tile")) == 24)
    page.until(lambda: [bool(each.find_elements(By.CLASS_NAME, "gone")) for each in page.all(".tile")[:3]] == [1, 1, 0])
    assert "no longer there" in page.all("#stage")[0].text
    assert page.words() == ["a", "red", "star"]
    page.all("#results .word")[1].click()
    page.until(lambda: any(page.shades()))


def test_the_page_speaks_with_its_server_alone(page, demo, blocks):
    look_for(page, demo, "a red star")
    page.until(lambda: loaded(page))
    names = page.script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert sum("/thumbnails/" in name for name in names) > 5
    assert [name for name in names if not name.startswith((blocks.local_url, "data:"))] == []
    assert blocks.local_url.startswith("http://127.0.0.1:")


def test_no_file_is_served_but_thumbnails_of_what_was_found(blocks, folder, demo):
    demo.search("a red star", "")
    found = next(iter(demo.paths))
    with urllib.request.urlopen(f"{blocks.local_url}thumbnails/{found}") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert "immutable" in answer.headers["Cache-Control"]
    path = str(folder / "pictures" / "00.png")
    for place in (
        "thumbnails/" + "0" * 64,
        "thumbnails/" + urllib.parse.quote(path, safe=""),
        f"gradio_api/file={path}",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(blocks.local_url + place)
        assert refused.value.code in (403, 404)


def test_a_full_queue_says_that_it_is(request, demo):
    blocks = serve(library_page, demo, most_waiting=0)
    request.addfinalizer(blocks.close)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(queue_request(blocks, ["a star", ""]))
    assert refused.value.code == 503


def test_pictures_of_the_page(request, chromium, blocks, demo, tmp_path):
    given = request.config.getoption("screenshots")
    sentence, folder = os.environ.get("SENTENCE", "a red star"), tmp_path
    if given is not None:
        demo, folder = library_page.Demo(given[0]), Path(given[1])
        blocks = serve(library_page, demo)
        request.addfinalizer(blocks.close)
    for name, size, scale in (("desktop", DESKTOP, 1.5), ("phone", PHONE, 2)):
        page = opened(chromium, blocks, size)
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        look_for(page, demo, sentence)
        page.until(lambda page=page: loaded(page))
        words = page.all("#results .word")
        words[len(words) - 1].click()
        page.script("document.activeElement.blur(); scrollTo(0, 0)")
        page.until(
            lambda page=page: page.script("return document.getAnimations().every(x => x.playState === 'finished')")
        )
        file = folder / f"library_{name}.png"
        assert page.driver.save_screenshot(str(file))
        picture = Image.open(file).convert("RGB")
        assert picture.size == (scale * size[0], scale * size[1])
        assert np.asarray(picture.convert("L")).std() > 10  # something is there
        picture.quantize(256).save(file, optimize=True)  # a third of the bytes
    print(f"from a keystroke to the wall: {', '.join(f'{each:.3f}' for each in latencies(page))} s")


def latencies(page) -> list[float]:
    """Seconds from each of six keystrokes until the page has the words of the new sentence, and so its wall."""
    page.script(
        """
        window.times = [];
        let typed = 0;
        const box = document.querySelector('#sentence textarea, #sentence input');
        box.addEventListener('input', () => { typed = performance.now(); });
        new MutationObserver(() => {
          if (!typed || document.querySelector('#results section')?.getAttribute('aria-label') !== box.value) return;
          window.times.push((performance.now() - typed) / 1000);
          typed = 0;
        }).observe(document.querySelector('#results'), {childList: true, subtree: true, attributes: true});
        """
    )
    page.box("sentence").send_keys(Keys.END)
    for number, key in enumerate([*"let", *[Keys.BACKSPACE] * 3], start=1):
        page.box("sentence").send_keys(key)
        page.until(lambda number=number: len(page.script("return window.times")) >= number)
    return page.script("return window.times")
