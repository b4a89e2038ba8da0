import json
import re

import pytest
import sources
from PIL import Image

from omit_hf.data import load_image_text


def by_file(split, number):
    return f"{split}/{number}.png"


@pytest.mark.parametrize("one_a_line", [False, True])
def test_a_list_or_one_caption_a_line(tmp_path, one_a_line):
    folder, options = sources.image_folder(tmp_path, one_a_line)
    sources.expect(load_image_text(folder, **options), by_file)


def test_another_field_and_characters_that_part_lines(tmp_path):
    folder, _ = sources.image_folder(tmp_path)
    line = json.dumps({"file_name": "9.png", "caption": "one\u2028caption"}, ensure_ascii=False)
    for split in ("train", "validation", "test"):
        number = sources.NUMBERS[split][0]
        text = line.replace("9.png", f"{number}.png") + "\n\n"
        (folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    data = load_image_text(folder, caption_field="caption")
    assert data["test"]["captions"][:] == [["one caption"]]
    with pytest.raises(ValueError, match=r"no field 'text'; it has file_name, caption \(option caption_field\)"):
        load_image_text(folder)


def test_every_problem_is_listed(tmp_path):
    folder, _ = sources.image_folder(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "secret.png")
    (folder / "link.png").symlink_to("link.png")
    lines = [
        "{",
        '{"file_name": "0.png"}',
        '{"file_name": "1.png", "text": 3}',
        '{"file_name": "2.png", "text": []}',
        '{"file_name": "3.png", "text": " "}',
        '{"file_name": "gone.png", "text": "a"}',
        '{"file_name": "../../secret.png", "text": "a"}',
        '{"file_name": "/etc/passwd", "text": "a"}',
        '{"file_name": "../link.png", "text": "a"}',
        "[1]",
        '{"file_name": "4.png", "text": [1]}',
        '{"file_name": "5.png", "text": {"a": 1}}',
        "[" * 10_000,
    ]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(["", *lines]))
    with pytest.raises(ValueError, match="has 13 problems") as caught:
        load_image_text(folder)
    for number, problem in enumerate(
        ["no JSON", "no field 'text'", "not the expected", "(train/2.png): no caption", "(train/3.png): no caption"]
        + [
            "train/gone.png is missing",
            "lies outside",
            "train//etc/passwd is missing",
            "../link.png cannot be read: Too many levels",
        ]
        + ["not the expected"] * 3
        + ["no JSON (values nested too deep)"]
    ):
        assert any(re.search(rf"line {number + 2}\b", line) and problem in line for line in caught.value.problems), (
            problem
        )


def test_what_is_not_there(tmp_path):
    folder, _ = sources.image_folder(tmp_path)
    (folder / "test" / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"No metadata.jsonl in .*test; expected the folders train, validation"):
        load_image_text(folder)
    (folder / "train" / "metadata.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"metadata.jsonl is no UTF-8 text"):
        load_image_text(folder)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_split_whose_metadata_are_empty(tmp_path, content):
    folder, _ = sources.image_folder(tmp_path)
    (folder / "test" / "metadata.jsonl").write_text(content)
    assert list(load_image_text(folder)) == ["train", "validation"]
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        load_image_text(folder, only=["train", "test"])
    for split in ("train", "validation"):
        (folder / split / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match="has no image; expected some in train, validation, test"):
        load_image_text(folder)


def test_a_name_twice_in_a_line(tmp_path):
    folder, _ = sources.image_folder(tmp_path)
    with (folder / "train" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "0.png", "text": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match="train/metadata.jsonl line 7: no JSON .the name text stands twice"):
        load_image_text(folder)
