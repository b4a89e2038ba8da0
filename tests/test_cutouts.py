import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from omit_hf.data import DataError
from omit_hf.data.sources.cutouts import open_cutout, read_cutouts


def save(folder, name="a.png", picture=None):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (picture or Image.new("RGBA", (8, 8), (200, 10, 10, 255))).save(folder / name)


def entry(**changes):
    return {"file": "a.png", "concept": "a", "style": "ink", "names": ["a"], **changes}


def write(folder, *entries):
    lines = [each if isinstance(each, str) else json.dumps(each) for each in entries]
    (folder / "cutouts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_names_and_drawings_of_a_concept_add_up(tmp_path):
    for name in ("a.png", "b.png", "deep/c.png", "d.png"):
        save(tmp_path, name)
    write(
        tmp_path,
        entry(names=["dog", " big   hound "], concept="dog"),
        "",
        entry(file="b.png", names=["cur", "dog"], concept="dog"),
        entry(file="deep/c.png", names=["dog"], concept="dog", style="wax"),
        entry(file="d.png", names=["cat"], concept="cat", style="wax"),
    )
    found = read_cutouts(tmp_path)
    assert found.names == {"dog": ["dog", "big hound", "cur"], "cat": ["cat"]}
    assert found.drawings == {
        "ink": {"dog": [tmp_path / "a.png", tmp_path / "b.png"]},
        "wax": {"dog": [tmp_path / "deep" / "c.png"], "cat": [tmp_path / "d.png"]},
    }


def test_transparent_ground_is_trimmed(tmp_path):
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[..., :3] = 255
    pixels[4:9, 10:22] = (10, 20, 30, 255)
    pixels[2, 5, 3] = 31  # too faint to be seen
    save(tmp_path, picture=Image.fromarray(pixels))
    found = np.asarray(open_cutout(tmp_path / "a.png"))
    assert found.shape == (5, 12, 4)
    assert (found == (10, 20, 30, 255)).all()


def test_paper_is_taken_away_and_white_parts_stay(tmp_path):
    picture = Image.new("RGB", (40, 40), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((10, 12, 29, 27), fill=(0, 90, 200))
    pen.rectangle((15, 15, 20, 20), fill="white")  # an eye
    for name in ("a.png", "a.jpg"):
        picture.save(tmp_path / name, quality=95)
        found = open_cutout(tmp_path / name)
        left, top = (20 - found.width) // 2, (16 - found.height) // 2  # a JPEG has a rim of grey
        assert abs(left) <= 3
        assert abs(top) <= 3
        assert (np.asarray(found)[5:-5, 5:-5, 3] == 255).all()
    assert open_cutout(tmp_path / "a.png").size == (20, 16)


def test_a_drawing_that_fills_its_paper(tmp_path):
    save(tmp_path, picture=Image.new("L", (8, 6), 100))
    assert open_cutout(tmp_path / "a.png").size == (8, 6)


def test_all_problems_are_listed(tmp_path):
    folder = tmp_path / "cutouts"
    for name in ("a.png", "b.png", "../outside.png"):
        save(folder, name)
    save(folder, "clear.png", Image.new("RGBA", (8, 8), (9, 9, 9, 0)))
    save(folder, "paper.png", Image.new("RGB", (8, 8), "white"))
    (folder / "broken.png").write_bytes(b"no picture")
    write(
        folder,
        entry(),
        entry(),
        entry(file="missing.png"),
        entry(file="../outside.png"),
        entry(file="clear.png"),
        entry(file="paper.png"),
        entry(file="broken.png"),
        "{",
        "[1]",
        '{"file": "b.png", "names": []}',
        entry(file="b.png", names=["b", " "]),
        entry(file="b.png", names=[]),
        entry(file="b.png", names="b"),
        entry(file="b.png", concept=""),
        entry(file="b.png", style=3),
        entry(file="b\0.png"),
        entry(file=400 * "b"),
        "[" * 10_000,
    )
    with pytest.raises(DataError) as caught:
        read_cutouts(folder)
    expected = [
        "line 2: a.png is there already, in cutouts.jsonl line 1",
        "line 3: missing.png is missing",
        "line 4: ../outside.png lies outside the image folder",
        "line 5: clear.png cannot be used: no pixel of it is visible; expected a drawing on",
        "line 6: paper.png cannot be used: no pixel of it is visible",
        "line 7: broken.png cannot be used: cannot identify image file",
        "line 8: no JSON",
        "line 9: [1] is no object; expected one with file, concept, style and names",
        "line 10: no concept, style; it has file, names",
        "line 11: names is ['b', ' ']; expected a list of texts, at least one and none of them empty",
        "line 12: names is []; expected a list",
        "line 13: names is 'b'; expected a list",
        "line 14: concept is ''; expected a text that is not empty",
        "line 15: style is 3; expected a text that is not empty",
        r"line 16: the file is 'b\x00.png'; expected a path in the folder",
        "line 17: 'bbbbb",
        "line 18: no JSON (values nested too deep)",
    ]
    assert len(caught.value.problems) == len(expected)
    for problem, start in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(f"cutouts.jsonl {start}")


def test_links_of_the_folder_are_followed_and_a_drawing_counts_once(tmp_path):
    folder = tmp_path / "cutouts"
    save(folder, "../outside.png")
    folder.mkdir(exist_ok=True)
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    (folder / "b.png").symlink_to(tmp_path / "outside.png")
    write(folder, entry())
    assert read_cutouts(folder).drawings == {"ink": {"a": [folder / "a.png"]}}
    write(folder, entry(), entry(file="b.png", style="wax"))
    with pytest.raises(DataError, match=r"line 2: b.png is there already, in cutouts.jsonl line 1"):
        read_cutouts(folder)


def test_a_picture_too_large_to_open(tmp_path, monkeypatch):
    monkeypatch.setattr("omit_hf.data.sources.cutouts.MAX_PIXELS", 63)
    save(tmp_path)
    with pytest.raises(ValueError, match="it has 8 x 8 pixels; expected at most 63"):
        open_cutout(tmp_path / "a.png")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder of cut-outs at .*nowhere"):
        read_cutouts(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No cutouts.jsonl in .*; expected one that lists"):
        read_cutouts(tmp_path)
    write(tmp_path, "")
    with pytest.raises(DataError, match="no cut-out"):
        read_cutouts(tmp_path)
