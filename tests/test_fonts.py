"""Which fonts a text is drawn with; here a machine has those of matplotlib and those that a test makes."""

import io
import warnings
from pathlib import Path

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image
from planned import alignment

from omit_hf.command_line import inspect
from omit_hf.visualization import draw_comparison, draw_plan, draw_words, fonts, save_figure
from omit_hf.visualization.panels import fitted

WORDS = ("புலி", "猫と犬", "كلبٌ", "कुत्ता", "𓃠", "left")  # in scripts that DejaVu lacks, but two
LACKING = {"Tamil": "fonts-noto-core", "CJK": "fonts-noto-cjk", "Devanagari": "fonts-noto-core"}
PICTURE = Image.new("RGB", (80, 40), "teal")


def made_font(folder: Path, name: str, characters: str, weight: int = 400) -> Path:
    """A font with a square for each of some characters."""
    pen = TTGlyphPen(None)
    for number, corner in enumerate(((0, 0), (0, 700), (600, 700), (600, 0))):
        (pen.lineTo if number else pen.moveTo)(corner)
    pen.closePath()
    names = [".notdef", *(f"glyph{number}" for number in range(len(characters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (700, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=weight)
    builder.setupPost()
    builder.save(folder / f"{name}.ttf")
    return folder / f"{name}.ttf"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Makes fonts installed, after matplotlib has made its list."""
    own = [entry for entry in fontManager.ttflist if entry.fname.startswith(matplotlib.get_data_path())]
    files = []
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: files)
    monkeypatch.setattr(fonts, "_told", set())

    def install(*made: Path) -> None:
        files.extend(map(str, made))
        clear()

    def clear() -> None:
        for cache in (fonts._families, fonts._characters, fonts._add_installed, fontManager._findfont_cached):
            cache.cache_clear()

    clear()
    yield install
    monkeypatch.undo()
    clear()


def drawn(words) -> list[str]:
    """What is warned of when words are drawn in every way and in every format."""
    found = alignment([[0.1] * (1 + len(words))] * 3, words)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for figure in (draw_words(found, PICTURE), draw_plan(found), draw_comparison([found] * 2, ["a", words[0]])):
            for kind in ("png", "pdf", "svg"):
                figure.savefig(io.BytesIO(), format=kind)
    return [str(each.message) for each in caught]


def test_fonts_that_are_installed_draw_what_matplotlib_lacks(installed, tmp_path):
    made = [made_font(tmp_path, f"Made {number}", "".join(set(word))) for number, word in enumerate(WORDS[:5])]
    installed(*made)
    assert drawn(WORDS) == []
    assert fonts.families(WORDS[1]) == ["sans-serif", "Made 1"]
    assert fonts.families(f"{WORDS[0]} {WORDS[1]}") == ["sans-serif", "Made 0", "Made 1"]
    assert fonts.families("left") == ["sans-serif"]
    assert fonts.families("كلبٌ") == ["sans-serif"]  # which DejaVu has


def test_the_width_of_a_word_is_that_of_its_font(installed, tmp_path):
    installed(made_font(tmp_path, "Made", "猫"))
    text, size = fitted("猫" * 40, 1.0)
    assert text.endswith("…")
    assert size * 0.7 * text.count("猫") <= 72 < size * 0.7 * 40


def test_as_few_fonts_as_need_be(installed, tmp_path):
    installed(
        made_font(tmp_path, "A", "猫"),
        made_font(tmp_path, "B", "猫犬"),
        made_font(tmp_path, "Noto Sans Made", "猫犬"),
        made_font(tmp_path, "Heavy", "猫犬と", weight=900),
    )
    assert fonts.families("猫犬") == ["sans-serif", "Noto Sans Made"]
    assert fonts.families("猫") == ["sans-serif", "Noto Sans Made"]
    assert fonts.font_files("猫犬") == [str(tmp_path / "Noto Sans Made.ttf"), fonts.font_files("a")[0]]


def test_a_script_without_a_font_is_told_once_with_the_package_to_install():
    said = [each for each in drawn(WORDS) if "missing from font" not in each]
    assert len(said) == len(LACKING) + 1  # a script a word
    for script, package in LACKING.items():
        [line] = [each for each in said if f"the characters of {script} (" in each]
        assert line.endswith(f"they are drawn as boxes. Install one: in Debian and Ubuntu, apt-get install {package}.")
    assert [each for each in drawn(WORDS) if "missing from font" not in each] == []
    with pytest.warns(UserWarning, match=r"Hiragana|symbols \(🦊\).*fonts-symbola"):
        fonts.families("🦊")


def test_blanks_and_marks_of_control_need_no_font():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fonts.families("a\u200b b\u2060\n\u00ad") == ["sans-serif"]


def test_files_that_are_no_fonts_do_not_matter(installed, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(tmp_path / "broken.ttf", tmp_path / "missing.ttf", made_font(tmp_path, "Made", "猫"))
    assert fonts.families("猫") == ["sans-serif", "Made"]


def test_a_sheet_of_samples_has_a_font_for_its_captions(installed, tmp_path):
    """`omit-hf inspect` draws captions as well, with PIL."""
    installed(made_font(tmp_path, "Made", "猫犬"))
    assert inspect.font_of("猫犬").path == str(tmp_path / "Made.ttf")
    assert "DejaVu" in inspect.font_of("un chat âgé").path
    assert inspect.font_of("a cat").getname() != inspect.font_of("âgé").getname()


def test_a_figure_in_a_file(installed, tmp_path):
    """The glyph itself: a black square stands where the word does."""
    installed(made_font(tmp_path, "Made", "猫"))
    figure = draw_words(alignment([[0.1, 0.1]] * 3, ["猫"]), PICTURE)
    [title] = [axis.title for axis in figure.axes if "猫" in axis.get_title()]
    save_figure(figure, tmp_path / "figure.png", dpi=100)
    box = title.get_window_extent()
    picture = Image.open(tmp_path / "figure.png").convert("L")
    left, bottom = int(box.x0), int(picture.height - box.y0)
    assert picture.getpixel((left + 4, bottom - 4)) < 100
