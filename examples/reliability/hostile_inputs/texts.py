"""Files of lines, of numbers and of markup."""

import json
import random
from pathlib import Path

import numpy as np

from hostile_inputs.case import ANY, Case, WrongValue
from hostile_inputs.data import CAPTIONS, PNGS, rows_of
from hostile_inputs.mutations import (
    harmless_text,
    mutate_text,
)
from omit_hf.data import read_word_vectors
from omit_hf.data.entities import read_annotations, read_sentences
from omit_hf.evaluation.protocols import read_cxc
from omit_hf.evaluation.protocols.coco_numbers import CocoNumbers

VOCABULARY = {"red": 2, "grün": 3, "blue": 4}


def word_vectors(rng: random.Random, folder: Path) -> Case:
    lines = [f"{word} {n}.5 -{n} 1e-{n}" for n, word in enumerate(["red", "grün", "blue", "the", "of"])]
    header = f"{len(lines)} 3\n" if rng.random() < 0.5 else ""
    content = (header + "\n".join(lines) + "\n").encode()
    harmless = rng.random() < 0.2
    what, content = harmless_text(rng, content) if harmless else mutate_text(rng, content)
    file = folder / "vectors.txt"
    file.write_bytes(content)
    true = [np.float32([float(n + 0.5), -n, float(f"1e-{n}")]) for n in range(3)]

    def read():
        found = read_word_vectors(file, VOCABULARY, 3)
        for word, number in VOCABULARY.items():
            if number in found.ids.tolist():
                vector = found.vectors[found.ids.tolist().index(number)].numpy()
                written = [line.split() for line in content.splitlines() if line.lstrip(b"\xef\xbb\xbf ")]
                written = [each[-3:] for each in written if each[:-3] and word.encode() in each[0]]
                if not any((np.array(each, dtype=np.float32) == vector).all() for each in _numbers(written)):
                    raise WrongValue(f"{word}: {vector.tolist()}")
        return [each.tolist() for each in found.vectors] if harmless else None

    return Case("word vectors", what, read, [each.tolist() for each in true] if harmless else ANY, ("vectors.txt",))


def _numbers(lines: list):
    for each in lines:
        try:
            yield [float(number) for number in each]
        except ValueError:
            continue


def exclude(rng: random.Random, folder: Path) -> Case:
    """A file of ids to leave out, as inspect_data.py writes it."""
    source, names = folder / "data", [f"{n}{rng.choice(['', ' a', chr(0x301)])}.png" for n in range(4)]
    (source / "test").mkdir(parents=True)
    lines = []
    for number, name in enumerate(names):
        (source / "test" / name).write_bytes(PNGS[number])
        lines.append(json.dumps({"file_name": name, "text": CAPTIONS[number]}))
    (source / "test" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    file, content = folder / "bad.txt", "".join(f"test/{name}\n" for name in names[:2]).encode()
    harmless = rng.random() < 0.2
    what, content = harmless_text(rng, content) if harmless else mutate_text(rng, content)
    file.write_bytes(content)

    def read():
        found = rows_of(source, exclude=file)
        left = [image_id for image_id, _, _ in found["test"]]
        written = content.decode("utf-8-sig").split("\n")
        if set(left) != {f"test/{name}" for name in names} - {each.lstrip("\ufeff").strip() for each in written}:
            raise WrongValue(f"left are {left}")
        return left if harmless else None

    expected = [f"test/{name}" for name in names[2:]] if harmless else ANY
    return Case("ids to leave out", what, read, expected, ("bad.txt", "exclude"))


def cxc(rng: random.Random, folder: Path) -> Case:
    numbers = CocoNumbers(np.arange(2), np.arange(4), np.arange(4), np.array([0, 0, 1, 1]), frozenset(), 4)
    rows = [(1, "COCO_val2014_000000000001.jpg", 5), (2, "COCO_val2014_000000000000.jpg", 3), (0, "1", 0.5)]
    content = "caption,image,agg_score,sampling_method\n"
    content = (content + "".join(f"{a},{b},{score},c2i\n" for a, b, score in rows)).encode()
    harmless = rng.random() < 0.2
    what, content = harmless_text(rng, content) if harmless else mutate_text(rng, content)
    (folder / "sits_test.csv").write_bytes(content)

    def read():
        found = read_cxc(folder, numbers, ["t2i"])["t2i"]
        pairs = sorted(zip(*(each.tolist() for each in found), strict=True))
        if not all(0 <= a < 4 and 0 <= b < 2 for a, b in pairs):
            raise WrongValue(pairs)
        return pairs if harmless else None

    expected = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 1)] if harmless else ANY
    return Case("Crisscrossed Captions", what, read, expected, ("sits_test.csv",))


SENTENCES = "[/EN#1/people A man] in [/EN#2/clothing/other a blue shirt] runs .\n[/EN#1/people He] is grün .\n"
ANNOTATIONS = """<annotation><filename>12.jpg</filename><size><width>24</width><height>16</height></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>10</ymax></bndbox></object>
<object><name>2</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>
"""
XML = {
    "a document type": '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
    "an encoding of no text": '<?xml version="1.0" encoding="rot13"?><annotation/>',
    "an unknown encoding": '<?xml version="1.0" encoding="no-such"?><annotation/>',
    "an encoding of many bytes": '<?xml version="1.0" encoding="utf-7"?><annotation/>',
    "a prefix without a name": "<annotation><a:b/></annotation>",
    "nested": "<a>" * 100_000 + "</a>" * 100_000,
    "nested objects": "<annotation>" + "<object>" * 5000 + "</object>" * 5000 + "</annotation>",
}


MARKUP = {
    "a phrase without end": "[/EN#1/people" + " " * 50_000,
    "types without end": "[/EN#1" + "/a" * 50_000,
    "phrases within phrases": "[/EN#1/people " * 20_000 + "]" * 20_000,
    "a phrase of blanks": "[/EN#1/people " + "a " * 50_000,
    "brackets": "[" * 100_000,
}


def entities(rng: random.Random, folder: Path) -> Case:
    in_xml = rng.random() < 0.5
    content = (ANNOTATIONS if in_xml else SENTENCES).encode()
    if rng.random() < 0.3:
        made = XML if in_xml else MARKUP
        what, harmless = rng.choice(list(made)), False
        content = made[what].encode()
    else:
        harmless = rng.random() < 0.2
        what, content = harmless_text(rng, content) if harmless else mutate_text(rng, content)
    file = folder / ("12.xml" if in_xml else "12.txt")
    file.write_bytes(content)

    def read():
        if in_xml:
            found = read_annotations(file)
            for x0, y0, x1, y1 in found.boxes:
                if not (0 <= x0 < x1 <= found.width and 0 <= y0 < y1 <= found.height):
                    raise WrongValue(found.boxes)
            return (found.boxes, found.chains) if harmless else None
        found = read_sentences(file)
        if not all(0 <= start < end <= len(text) for text, phrases in found for start, end, _ in phrases):
            raise WrongValue(found)
        return [[(text[start:end], chain) for start, end, chain in phrases] for text, phrases in found]

    if not harmless:
        expected = ANY
    elif in_xml:
        expected = ([[0.0, 1.0, 9.0, 10.0]], {"1": [0]})
    else:
        expected = [[("A man", "1"), ("a blue shirt", "2")], [("He", "1")]]
    return Case("Flickr30K Entities", what, read, expected, (file.name,))
