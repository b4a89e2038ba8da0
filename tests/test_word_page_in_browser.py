"""The page of `omit-hf app` in a real browser.

    pytest tests/test_word_page_in_browser.py --screenshots outputs/scenes model_cards

makes the README's pictures app_desktop.png and app_phone.png, and prints how long a keystroke takes (with -s).
"""

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
from browser import DESKTOP, HOSTILE, PHONE, Page
from pages import oracle, queue_request, save_models, serve
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from omit_hf.demo import serving, word_page


@pytest.fixture(scope="module")
def models(tmp_path_factory, processor):
    return save_models(tmp_path_factory.mktemp("models"), processor)


@pytest.fixture(scope="module")
def demo(models):
    return word_page.Demo(str(models / "omit"))


@pytest.fixture(scope="module")
def blocks(demo):
    blocks = serve(word_page, demo)
    yield blocks
    blocks.close()


def opened(chromium, blocks, size=DESKTOP) -> Page:
    page = Page(chromium, blocks.local_url, size)
    page.until(page.words)
    return page


@pytest.fixture
def page(chromium, blocks):
    return opened(chromium, blocks)


def test_choose_type_and_look(page, demo):
    page.all("#examples button")[2].click()
    picture, sentence = demo.examples[2]
    page.until(lambda: page.value("sentence") == sentence)
    page.until(lambda: "".join(page.words()) == sentence.replace(" ", ""))

    page.write("sentence", "a red star and two zebras")
    page.until(lambda: page.words() == ["a", "red", "star", "and", "two", "zebras"])
    expected = oracle(demo, picture, "a red star and two zebras")
    of = {each.get_dom_attribute("data-of"): each.text for each in page.all("section:first-of-type .dustbins b")}
    assert of == {each: f"{expected[each]:.0%}" for each in ("words", "picture")}
    shares = [each.text for each in page.all("section:first-of-type .share")]
    assert shares == [f"{each:.0%}" for each in expected["matched"]]
    assert page.all("section:first-of-type output")[0].text == f"score {expected['similarity']:.3f}"
    assert "not in the vocabulary" in page.all(".word.unknown")[0].get_dom_attribute("aria-label")

    star = page.all("section:first-of-type .word")[2]
    ActionChains(page.driver).move_to_element(star).perform()
    page.until(lambda: "star" in page.status())
    highest = max(map(max, expected["shares"]))
    assert page.shades() == pytest.approx([0.75 * (1 - each / highest) for each in expected["shares"][2]], abs=2e-3)
    ActionChains(page.driver).move_to_element(page.box("sentence")).perform()
    page.until(lambda: not any(page.shades()))
    page.all("section:first-of-type .where")[0].click()
    assert page.shades() == pytest.approx([0.75 * (1 - each) for each in expected["cells"]], abs=2e-3)


def test_by_keyboard_alone(page):
    page.press(Keys.TAB)
    page.until(lambda: page.active().startswith("Example 1"))
    page.press(Keys.TAB)
    page.press(Keys.ENTER)
    page.until(lambda: page.active().startswith("Example 2"))
    page.until(lambda: page.value("sentence") in page.active())
    for _ in range(len(page.all("#examples button")) - 1):
        page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.get_dom_attribute("id") == "upload"
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element == page.box("sentence")
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    page.press("small red star")
    page.until(lambda: page.words() == ["small", "red", "star"])
    assert not any(page.shades())
    page.press(Keys.TAB)  # the other sentence
    page.press(Keys.TAB)
    assert page.active().startswith("small, ")
    small = page.shades()
    assert any(small)
    assert page.status().startswith("“small”")
    page.press(Keys.TAB)
    assert page.active().startswith("red, ")
    assert page.shades() != small
    page.press(Keys.SPACE)
    red = page.shades()
    assert [each.text for each in page.all("[aria-pressed=true] .name")] == ["red"]
    page.press(Keys.TAB)
    assert page.shades() != red
    page.box("other").click()
    page.until(lambda: page.shades() == red)  # pinned
    for _ in range(2):
        page.press(Keys.TAB)
    page.press(Keys.SPACE)
    page.box("other").click()
    page.until(lambda: not any(page.shades()))


def test_two_sentences_are_compared(page, demo):
    picture, first = demo.examples[0]
    page.write("other", "two blue circles")
    page.until(lambda: page.words(2) == ["two", "blue", "circles"])
    shown = demo.show(picture)
    rows = []
    for sentence in (first, "two blue circles"):
        values = [oracle(demo, picture, sentence)["similarity"], demo.mean_similarity(shown, sentence)]
        rows.append([f"{value:.3f}" for value in values])
    table = [[cell.text.split()[-1] for cell in row.find_elements(By.TAG_NAME, "td")] for row in page.all("tbody tr")]
    assert table == rows
    assert "two blue circles" in page.status()
    page.write("other", Keys.DELETE)
    page.until(lambda: not page.words(2))
    assert page.words()


def test_uploads(page, tmp_path):
    Image.new("RGB", (80, 40), "teal").save(tmp_path / "picture.jpg")
    (tmp_path / "page.png").write_text("no picture")
    page.all("input[type=file]")[0].send_keys(str(tmp_path / "picture.jpg"))
    page.until(lambda: page.all('#stage svg[viewBox="0 0 80 40"]'))
    page.until(lambda: page.words())
    assert len(page.shades()) == 5 * 2  # cells of 16 pixels; what is left over lies in the last ones
    page.all("input[type=file]")[0].send_keys(str(tmp_path / "page.png"))
    page.until(lambda: page.all("#stage [role=alert]"))
    assert "no picture that can be read" in page.all("#stage")[0].text
    assert page.all("#results")[0].text == "Choose or upload a picture."


def test_hostile_sentences_stay_text(page):
    page.write("sentence", HOSTILE)
    page.until(lambda: HOSTILE in page.all("#results tbody")[0].text)
    page.all("#results .word")[0].click()
    assert page.script("return [window.hacked ?? null, document.querySelectorAll('#results img').length]") == [None, 0]


def test_on_a_phone(chromium, blocks):
    page = opened(chromium, blocks, PHONE)
    page.write("sentence", "a " + "very" * 30 + " red star")
    page.until(lambda: len(page.words()) == 4)
    assert page.script("return document.documentElement.scrollWidth") <= PHONE[0]
    word = page.all("#results .word")[-1]
    page.script("arguments[0].scrollIntoView({block: 'end'})", word)
    word.click()
    top, bottom = page.script(
        "const box = document.querySelector('#stage svg').getBoundingClientRect(); return [box.top, box.bottom]"
    )
    assert 0 <= top < bottom <= PHONE[1]  # the picture stays in view
    assert any(page.shades())


def test_the_page_speaks_with_its_server_alone(page, blocks):
    names = page.script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert len(names) > 5
    assert [name for name in names if not name.startswith((blocks.local_url, "data:"))] == []
    assert blocks.local_url.startswith("http://127.0.0.1:")


def test_no_file_is_read_but_uploads(blocks, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 24)).save(picture)
    base = blocks.local_url + "gradio_api/"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{base}file={picture}")
    assert refused.value.code == 403
    (upload,) = (number for number, each in blocks.fns.items() if each.name == "upload")
    session = uuid.uuid4().hex
    stolen = {"path": str(picture), "orig_name": "picture.png", "meta": {"_type": "gradio.FileData"}}
    urllib.request.urlopen(queue_request(blocks, [stolen, "", ""], upload, session)).close()
    with urllib.request.urlopen(f"{base}queue/data?session_hash={session}", timeout=60) as events:
        for line in events:
            event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                break
    assert event["success"] is False
    assert "svg" not in json.dumps(event)


def test_a_full_queue_says_that_it_is(request, demo, chromium):
    assert serving.MOST_WAITING == 32
    blocks = serve(word_page, demo, most_waiting=0)
    request.addfinalizer(blocks.close)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(queue_request(blocks, [None, "a star", ""]))
    assert refused.value.code == 503
    assert "Queue is full" in refused.value.read().decode()
    chromium.get(blocks.local_url)
    text = "return document.body.innerText"
    WebDriverWait(chromium, 60).until(
        lambda driver: "This application is currently busy" in driver.execute_script(text)
    )


def test_pictures_of_the_page(request, chromium, blocks, tmp_path):
    wanted = request.config.getoption("screenshots")
    model, folder = (None, tmp_path) if wanted is None else (wanted[0], Path(wanted[1]))
    if model is not None:
        blocks = serve(word_page, word_page.Demo(model))
    page = opened(chromium, blocks)
    page.all("#examples button")[2].click()
    page.until(lambda: "white" in page.words())
    page.write("sentence", "a white plus and a white ring")
    page.until(lambda: len(page.words()) == 7)
    page.write("other", "a white plus and a red ring")
    page.until(lambda: page.words(2)[-2:] == ["red", "ring"])
    print(f"from a keystroke to the new alignment: {', '.join(f'{each:.3f}' for each in latencies(page))} s")
    page.until(lambda: page.words(2)[-2:] == ["red", "ring"])
    for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 2, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        word = page.all("section:first-of-type .word")[1 if name == "desktop" else 6]
        if word.get_dom_attribute("aria-pressed") == "false":
            word.click()
        page.script("document.activeElement.blur(); scrollTo(0, 0)")
        if name == "phone":
            page.script("scrollTo(0, document.querySelector('#stage').getBoundingClientRect().top)")
        page.until(lambda: page.script("return document.getAnimations().every(each => each.playState === 'finished')"))
        assert page.driver.save_screenshot(str(folder / f"app_{name}.png"))
        picture = Image.open(folder / f"app_{name}.png").convert("L")
        assert picture.size == (2 * size[0], 2 * size[1])
        assert np.asarray(picture).std() > 10  # something is there
    if model is not None:
        blocks.close()


def latencies(page) -> list[float]:
    """Seconds from each of six keystrokes at the sentence's end until the new alignment stands there."""
    page.script(
        """
        window.typed = 0; window.times = [];
        const words = () => [...document.querySelectorAll('#results .name')].map(each => each.textContent).join(' ');
        let before = words();
        const text = document.querySelector('#sentence textarea, #sentence input');
        text.addEventListener('input', () => { window.typed = performance.now(); });
        new MutationObserver(() => {
          if (words() === before) return;
          before = words();
          window.times.push((performance.now() - window.typed) / 1000);
        }).observe(document.querySelector('#results'), {childList: true, subtree: true, characterData: true});
        """
    )
    page.box("sentence").send_keys(Keys.END)
    for number, key in enumerate([*"let", *[Keys.BACKSPACE] * 3], start=1):
        page.box("sentence").send_keys(key)
        page.until(lambda number=number: len(page.script("return window.times")) >= number)
    return page.script("return window.times")
