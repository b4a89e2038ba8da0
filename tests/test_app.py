"""examples/app.py: what it draws, and the page in a real browser.

    pytest tests/test_app.py --screenshots outputs/scenes model_cards

makes the README's pictures app_desktop.png and app_phone.png, and prints how long a keystroke takes (with -s).
"""

import importlib.util
import json
import os
import re
import runpy
import shutil
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_pictures import FILES
from broken_pictures import PICTURE as WHOLE
from browser import DESKTOP, HOSTILE, PHONE, Elements, Page, start_chromium
from miniatures import save_clip, text_tokenizer
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from tiny import REGIONS, TEXT, tiny_config, tiny_recipe
from transformers import CLIPImageProcessor

from omit_hf import OmitModel, OmitProcessor
from omit_hf.demo import serving
from omit_hf.training import Recipe, write_recipe_file

SCRIPT = Path(__file__).parents[1] / "examples" / "app.py"


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("app", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory, scenes, processor):
    """Folders of models: one of Scenes with its recipe, others without."""
    folder = tmp_path_factory.mktemp("models")
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    for name, options in {
        "omit": {},
        "ot": {"matching": "ot"},
        "maxsim": {"matching": "maxsim"},
        "mean": {"matching": "mean"},
        "regions": {"vision_config": REGIONS},
    }.items():
        torch.manual_seed(0)
        OmitModel(tiny_config(text_config=text, **options)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    write_recipe_file(Recipe(**tiny_recipe(output_dir=str(folder))), folder / "omit" / "recipe.yaml")
    return folder


@pytest.fixture(scope="module")
def demo(app, models):
    return app.Demo(str(models / "omit"))


def oracle(demo, picture, sentence) -> dict:
    """Of the model's own plan, by loops."""
    inputs = demo.processor(images=picture, text=sentence)
    with torch.no_grad():
        out = demo.model(**inputs, output_transport=True)
    plan = out.transport_plan[0, 0].double().numpy()
    rows, columns = plan.shape
    words = [[plan[row, column] for row in range(rows)] for column in range(1, columns)]
    cells = [[plan[row, column] for column in range(columns)] for row in range(1, rows)]
    return {
        "similarity": out.similarity.item(),
        "shares": [[value / sum(word) for value in word[1:]] for word in words],
        "matched": [1 - word[0] / sum(word) for word in words],
        "words": sum(word[0] for word in words) / sum(map(sum, words)),
        "picture": sum(cell[0] for cell in cells) / sum(map(sum, cells)),
        "cells": [cell[0] / sum(cell) for cell in cells],
    }


# --- what is drawn ----------------------------------------------------------------------------------------------------


def drawn(app, demo, picture, *sentences) -> Elements:
    shown = demo.show(picture)
    alignments = [demo.align(shown, each) for each in sentences]
    return Elements(app.results(alignments, sentences, [demo.mean_similarity(shown, each) for each in sentences]))


def test_shares_are_those_of_the_models_plan(app, demo):
    picture, sentence = demo.examples[1]
    html, expected = drawn(app, demo, picture, sentence), oracle(demo, picture, sentence)
    *words, dustbin = html.all("button")
    assert [float(word["data-matched"]) for word in words] == pytest.approx(expected["matched"], abs=1e-5)
    for word, shares in zip(words, expected["shares"], strict=True):
        assert [float(each) for each in word["data-shares"].split()] == pytest.approx(shares, abs=1e-4)
        assert float(word["data-highest"]) == pytest.approx(max(map(max, expected["shares"])), abs=1e-5)
    assert [float(each) for each in dustbin["data-shares"].split()] == pytest.approx(expected["cells"], abs=1e-4)
    shares = {each["data-of"]: float(each["data-share"]) for each in html.all("b")}
    assert shares == pytest.approx({each: expected[each] for each in ("words", "picture")}, abs=1e-5)
    assert float(html.all("output")[0]["data-similarity"]) == pytest.approx(expected["similarity"], abs=1e-5)


def test_mean_is_the_cosine_of_the_same_features(app, demo):
    picture, sentence = demo.examples[0]
    with torch.no_grad():
        image = demo.model.get_image_features(**demo.processor(images=picture))
        text = demo.model.get_text_features(**demo.processor(text=sentence))
    sides = [(side.embeds * side.norms[..., None])[0].double().sum(0).numpy() for side in (image, text)]
    cosine = float(sides[0] @ sides[1] / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1]))
    assert demo.mean_similarity(demo.show(picture), sentence) == pytest.approx(cosine, abs=1e-5)


def test_better_of_two_sentences_is_marked_a_method(app, demo):
    shown = demo.show(demo.examples[0][0])
    one, other = (demo.align(shown, sentence) for sentence in ("a red star", "two blue circles"))
    one.similarity, other.similarity = 0.25, 0.5
    table = app.comparison([one, other], ["a red star", "two blue circles"], [0.75, 0.125])
    marked = re.findall(r'data-method="(\w+)" data-value="([\d.]+)"><span class="better">', table)
    assert marked == [("mean", "0.750000"), ("omit", "0.500000")]
    assert "better" not in app.comparison([one], ["a red star"], [0.75])


def test_a_picture_is_encoded_once(demo, monkeypatch):
    encoded = []
    original = demo.model.get_image_features
    monkeypatch.setattr(demo.model, "get_image_features", lambda *a, **k: encoded.append(1) or original(*a, **k))
    shown = demo.show(demo.examples[0][0])
    for sentence in ("a red star", "two blue circles"):
        demo.align(shown, sentence)
        demo.mean_similarity(shown, sentence)
    assert len(encoded) == 1


@pytest.mark.parametrize("name", ["ot", "maxsim"])
def test_a_head_without_dustbins_says_so(app, models, demo, name):
    other = app.Demo(str(models / name))
    assert other.examples == []  # no recipe beside it
    html = drawn(app, other, demo.examples[0][0], "a red star")
    assert len(html.all("button")) == 3
    assert not html.all("button", "data-matched")
    assert not html.all("b")
    alignment = other.align(other.show(demo.examples[0][0]), "a red star")
    assert "has no dustbins" in app.results([alignment], ["a red star"], [0.5])


def test_nothing_of_a_sentence_becomes_html(app, demo):
    shown = demo.show(demo.examples[0][0])
    alignment = demo.align(shown, HOSTILE)
    alignment.words[0] = HOSTILE  # of a tokenizer that splits otherwise
    html = Elements(app.results([alignment], [HOSTILE], [0.5]))
    assert not {tag for tag, _ in html.found} & {"img", "script", "a", "x"}
    assert not any(name.startswith("on") for _, attributes in html.found for name in attributes)
    assert html.all("section")[0]["aria-label"] == HOSTILE
    assert not Elements(app.message(HOSTILE)).all("img")


def test_cells_cover_what_the_model_sees(app, demo):
    shown = demo.show(Image.new("RGB", (64, 32), "teal"))
    html = Elements(app.stage(shown))
    cells = [[float(cell[side]) for side in ("x", "y", "width", "height")] for cell in html.all("rect")]
    assert len(cells) == shown.encoded.features.embeds.shape[1]
    assert sum(width * height for _, _, width, height in cells) == pytest.approx(64 * 32)
    assert html.all("svg")[0]["viewbox"] == "0 0 64 32"
    assert html.all("image")[0]["href"].startswith("data:image/png;base64,")


def test_a_processor_that_crops_sees_the_middle(app, tmp_path):
    OmitModel.from_clip(save_clip("clip", tmp_path / "clip")).save_pretrained(tmp_path / "omit")
    pictures = CLIPImageProcessor.from_pretrained(tmp_path / "clip")
    OmitProcessor(pictures, text_tokenizer("clip_text_model")).save_pretrained(tmp_path / "omit")
    demo = app.Demo(str(tmp_path / "omit"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8))
    html = Elements(app.stage(demo.show(picture)))
    cells = np.array([[float(cell[side]) for side in ("x", "y", "width", "height")] for cell in html.all("rect")])
    np.testing.assert_allclose(cells[[0, -1], :2], [[150, 0], [600, 450]], atol=1)
    np.testing.assert_allclose(cells[:, 2:], 150, atol=1)
    numbers = [float(each) for each in re.findall(r"[\d.]+", html.all("path", "class")[0]["d"])]
    np.testing.assert_allclose(numbers, [0, 0, 900, 600, 0, 150, 0, 750, 600, 150], atol=1)
    words = drawn(app, demo, picture, "red a").all("button", "data-matched")
    assert [word["aria-label"].split(",")[0] for word in words] == ["red", "a"]


def test_large_pictures_have_no_more_cells_than_a_page_bears(app, demo):
    shown = demo.show(Image.new("RGB", (1500, 1000), "teal"))
    assert 0.8 * app.MOST_CELLS < shown.encoded.features.embeds.shape[1] <= app.MOST_CELLS
    assert shown.picture.width / shown.picture.height == pytest.approx(1.5, rel=0.05)
    assert (shown.encoded.frame["width"], shown.encoded.frame["height"]) == shown.picture.size


def test_uploads_and_sentences_have_limits(app, demo, tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    Image.new("RGB", (40, 24), "teal").save(file)
    assert demo.open(file).picture.size == (40, 24)
    with pytest.raises(ValueError, match=r"201 characters; expected at most 200"):
        demo.align(demo.open(file), "a" * 201)
    (tmp_path / "page.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(ValueError, match=r"no picture that can be read; expected one of PNG"):
        demo.open(tmp_path / "page.png")
    Image.new("RGB", (400, 8)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match=r"400 x 8 pixels; expected at most 20 times"):
        demo.open(tmp_path / "long.png")
    monkeypatch.setattr(app, "LIMITS", serving.Limits(image_bytes=file.stat().st_size - 1))
    with pytest.raises(ValueError, match=r"too large; expected at most \d+ bytes"):
        demo.open(file)


# --- the command line -------------------------------------------------------------------------------------------------


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", ["app.py", *map(str, arguments)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return str(stop.code)
    return ""


def test_as_a_space_the_file_needs_no_arguments(models, monkeypatch, tmp_path):
    launched = {}
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: launched.update(options))
    monkeypatch.setenv("MODEL", str(models / "omit"))
    shutil.copy(SCRIPT, tmp_path / "app.py")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "app.py") == ""
    assert launched["server_name"] is None  # Gradio's own default: 127.0.0.1, or what a Space sets
    assert launched["share"] is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not launched.get("allowed_paths")
    assert run(monkeypatch, "app.py", models / "ot", "--host", "0.0.0.0", "--port", "8123") == ""
    assert (launched["server_name"], launched["server_port"]) == ("0.0.0.0", 8123)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", r"^error: .*mean matches with 'mean', which does not align words.*'omit', 'ot'"),
        ("regions", r"^error: .*takes precomputed regions.*explain\.py"),
        ("missing", r"^error: .*missing"),
    ],
)
def test_models_that_cannot_be_shown(models, monkeypatch, name, message):
    assert re.search(message, run(monkeypatch, SCRIPT, models / name), re.DOTALL)


def test_a_model_is_needed(monkeypatch, capsys):
    monkeypatch.delenv("MODEL", raising=False)
    assert run(monkeypatch, SCRIPT) == "2"
    assert "no model is given; expected a folder or Hub id" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["png header", "webp noise", "tiff xmp of numbers", "jpeg header lossy"])
def test_a_picture_with_broken_metadata_is_shown(app, demo, tmp_path, name):
    (tmp_path / "picture").write_bytes(FILES[name])
    assert demo.open(tmp_path / "picture").picture.size == WHOLE.size


def test_a_picture_that_is_too_small_says_so(demo, tmp_path):
    Image.new("RGB", (7, 7)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="7 x 7 pixels; the vision backbone, 'convnext', takes at least 16 x 16"):
        demo.open(tmp_path / "small.png")


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks(app, demo):
    blocks = app.launch(demo, app.Address(), prevent_thread_lock=True, quiet=True)
    yield blocks
    blocks.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    driver = start_chromium(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


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
    request = {"data": [stolen, "", ""], "fn_index": upload, "session_hash": session}
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{base}queue/join", json.dumps(request).encode(), headers)).close()
    with urllib.request.urlopen(f"{base}queue/data?session_hash={session}", timeout=60) as events:
        for line in events:
            event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                break
    assert event["success"] is False
    assert "svg" not in json.dumps(event)


def test_a_full_queue_says_that_it_is(request, app, demo, chromium):
    assert serving.MOST_WAITING == 32
    blocks = app.launch(demo, app.Address(), most_waiting=0, prevent_thread_lock=True, quiet=True)
    request.addfinalizer(blocks.close)
    body = {"data": [None, "a star", ""], "fn_index": 0, "session_hash": uuid.uuid4().hex}
    join = urllib.request.Request(
        f"{blocks.local_url}gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(join)
    assert refused.value.code == 503
    assert "Queue is full" in refused.value.read().decode()
    chromium.get(blocks.local_url)
    text = "return document.body.innerText"
    WebDriverWait(chromium, 60).until(
        lambda driver: "This application is currently busy" in driver.execute_script(text)
    )


def test_pictures_of_the_page(request, app, chromium, blocks, tmp_path):
    wanted = request.config.getoption("screenshots")
    model, folder = (None, tmp_path) if wanted is None else (wanted[0], Path(wanted[1]))
    if model is not None:
        blocks = app.launch(app.Demo(model), app.Address(), prevent_thread_lock=True, quiet=True)
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
