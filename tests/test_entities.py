import logging
import time

import miniatures
import pytest
from datasets import Dataset

from omit_hf.data import DataError, load_entities, load_karpathy
from omit_hf.data.entities import read_annotations, read_sentences
from omit_hf.data.phrases import NO_BOX, check_phrases, phrases_of

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts/other shaggy hair] , [/EN#0/notvisual who] look at it .
[/EN#1/people Two  men] in [/EN#8/scene the yard] wait for [/EN#5/other a bus] - [/EN#1/people they] are late .
"""
CAPTIONS = ["Two young guys with shaggy hair, who look at it.", "Two men in the yard wait for a bus - they are late."]
XML = """<annotation><filename>10.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>
<object><name>1</name><name>2</name><bndbox><xmin>21</xmin><ymin>5</ymin><xmax>30</xmax><ymax>9</ymax></bndbox></object>
<object><name>8</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>5</name><scene>0</scene><nobndbox>1</nobndbox></object></annotation>"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Sentences" / "10.txt").write_text(SENTENCES)
    (tmp_path / "Annotations" / "10.xml").write_text(XML)
    return tmp_path


def split(*captions, ids=("10.jpg",), **columns) -> Dataset:
    return Dataset.from_dict({"captions": [list(captions or CAPTIONS)] * len(ids), "image_id": list(ids), **columns})


def test_phrases_and_boxes_in_the_captions_of_karpathy(folder):
    data, report = load_entities(folder, split())
    row = data[0]
    assert (row["width"], row["height"]) == (50, 40)
    assert row["boxes"] == [[0, 1, 20, 40], [20, 4, 30, 9]]  # of whole pixels, the last ones included
    named = {}
    for number, caption in enumerate(row["captions"]):
        for phrase in phrases_of(row, number):
            named[caption[phrase.start : phrase.end]] = phrase.boxes.tolist()
    both, second = row["boxes"], row["boxes"][1:]
    assert named == {
        "Two young guys": both,
        "shaggy hair": second,
        "who": [],
        "Two men": both,
        "the yard": [],
        "a bus": [],
        "they": both,
    }
    assert (report.images, report.captions, report.phrases, report.boxed, report.not_visual) == (1, 2, 7, 4, 1)
    check_phrases(data)
    assert NO_BOX in [phrase["object"] for phrase in row["phrases"]]


def test_captions_are_compared_by_their_letters(folder, caplog):
    """Whatever order, marks, spaces and capitals they have; what the annotations do not have is left out and told."""
    caplog.set_level(logging.WARNING)
    captions = ["two men in THE yard wait for a bus: they are late", "A third one.", "Two young guys - shaggy"]
    data, report = load_entities(folder, split(*captions))
    assert data[0]["captions"] == captions[:1]
    assert {phrase["caption"] for phrase in data[0]["phrases"]} == {0}
    spans = {captions[0][phrase["start"] : phrase["end"]] for phrase in data[0]["phrases"]}
    assert spans == {"two men", "THE yard", "a bus", "they"}
    assert report.unmatched == ["10.jpg: A third one.", "10.jpg: Two young guys - shaggy"]
    assert "2 captions that the annotations do not have" in caplog.text


def test_a_sentence_is_of_one_caption(folder):
    _, report = load_entities(folder, split(CAPTIONS[0], CAPTIONS[0]))
    assert (report.captions, report.unmatched) == (1, [f"10.jpg: {CAPTIONS[0]}"])


def test_accents_and_ligatures(folder):
    (folder / "Sentences" / "10.txt").write_text(
        "[/EN#1/people A fiancee] s [/EN#2/other cafe\u0301] .\n", encoding="utf-8"
    )
    caption = "A ﬁancée's “café”."
    data, _ = load_entities(folder, split(caption))
    assert {caption[each["start"] : each["end"]] for each in data[0]["phrases"]} == {"A ﬁancée", "café"}


def test_only_images_of_the_split_that_are_annotated(folder, caplog):
    caplog.set_level(logging.WARNING)
    (folder / "Sentences" / "77.txt").write_text("[/EN#1/people A train image] .\n")  # with no XML: it is never read
    data, report = load_entities(folder, split(ids=["test/9.jpg", "test/10.jpg"], extra=[1, 2]))
    assert data["image_id"][:] == ["test/10.jpg"]
    assert data["extra"][:] == [2]
    assert report.unannotated == ["test/9.jpg"]
    assert "1 images without annotations" in caplog.text
    with pytest.raises(ValueError, match=r"annotates none of the 1 images of the split \(9.jpg …\)"):
        load_entities(folder, split(ids=["9.jpg"]))


def test_an_image_all_of_whose_captions_are_others(folder):
    with pytest.raises(ValueError, match="annotates none of the 1 images"):
        load_entities(folder, split("Something else."))


def test_a_box_is_cut_at_the_edge_of_the_picture(folder):
    (folder / "Annotations" / "10.xml").write_text(
        XML.replace("<xmax>30<", "<xmax>52<").replace("<ymin>2<", "<ymin>0<").replace("<ymax>9<", "<ymax>41<")
    )
    data, report = load_entities(folder, split())
    assert data[0]["boxes"] == [[0, 0, 20, 40], [20, 4, 50, 40]]
    assert report.clipped == 2


def test_the_boxes_of_regions_keep_a_column(folder):
    regions = {"region_features": [[[1.0, 2.0]]], "boxes": [[[0.0, 0.0, 9.0, 9.0]]], "width": [50], "height": [40]}
    data, _ = load_entities(folder, split(**regions))
    assert data[0]["region_boxes"] == [[0, 0, 9, 9]]
    assert data[0]["boxes"] == [[0, 1, 20, 40], [20, 4, 30, 9]]
    with pytest.raises(DataError, match="10.jpg has 25 x 20 pixels in the split, and 50 x 40 in the annotations"):
        load_entities(folder, split(**{**regions, "width": [25], "height": [20]}))


def test_a_whole_data_set(tmp_path):
    test = load_karpathy(*miniatures.karpathy(tmp_path / "flickr"))["test"]
    data, report = load_entities(miniatures.entities(tmp_path / "entities"), test)
    assert report.unmatched == report.unannotated == []
    for row, scene in zip(data, miniatures._scenes()["test"], strict=True):
        assert row["captions"] == scene["captions"]
        assert row["boxes"] == scene["boxes"]
        key = lambda phrase: tuple(phrase.values())  # noqa: E731
        assert sorted(row["phrases"], key=key) == sorted(scene["phrases"], key=key)
        assert row["image"].size == (96, 96)


def test_missing_folders_and_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="No Sentences in .*nowhere; expected the annotations of Flickr30K"):
        load_entities(tmp_path / "nowhere", split())
    (folder / "Annotations" / "10.xml").unlink()
    with pytest.raises(DataError, match=r"10.xml is missing"):
        load_entities(folder, split())
    (folder / "Annotations").rmdir()
    with pytest.raises(FileNotFoundError, match="No Annotations in"):
        load_entities(folder, split())


def test_all_that_is_wrong_is_listed(folder):
    (folder / "Sentences" / "11.txt").write_text("[/EN#1/people A man")
    (folder / "Annotations" / "11.xml").write_text(XML)
    (folder / "Annotations" / "12.xml").write_text(XML)
    (folder / "Annotations" / "10.xml").write_text("<annotation>")
    with pytest.raises(DataError) as caught:
        load_entities(folder, split(ids=["10.jpg", "11.jpg", "12.jpg"]))
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "10.xml is no XML: no element found" in problems
    assert "11.txt line 1 has the markup '[/EN#1/people A man'" in problems
    assert "12.txt is missing" in problems


@pytest.mark.parametrize(
    "line",
    [
        "[/EN#1/people A man walks .",
        "[/EN#x/people A man] walks .",
        "[/EN#1 A man] walks .",
        "[/EN#1/people ] walks .",
        "[/EN#1/people A [/EN#2/people man]] walks .",
    ],
)
def test_malformed_markup(folder, line):
    file = folder / "Sentences" / "10.txt"
    file.write_text(f"Fine .\n{line}\n")
    with pytest.raises(
        ValueError, match=r"10.txt line 2 has the markup '\[/EN#.*; expected '\[/EN#chain/type words\]'"
    ):
        read_sentences(file)


def test_brackets_that_are_no_markup(folder):
    file = folder / "Sentences" / "10.txt"
    file.write_text("[ sic ] [/EN#12/a/b/c The\u2028man ] here\n\n")
    assert read_sentences(file) == [("[ sic ] The\u2028man here", [(8, 15, "12")])]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"10.txt is no UTF-8 text"):
        read_sentences(file)


BOMB = '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotation>", f"{BOMB}<annotation>", "has a document type, which could define entities"),
        ("<annotation>", '<!DOCTYPE annotation SYSTEM "http://x/y.dtd"><annotation>', "has a document type"),
        ("</annotation>", "", "is no XML"),
        ("10.jpg", "11.jpg", "is of the image '11.jpg'; expected that of the file's own name"),
        ("<filename>10.jpg</filename>", "", "is of the image ''"),
        ("<width>50</width>", "", "has None for width; expected a whole number"),
        ("<width>50</width>", "<width>0</width>", "has a size of 0 x 40 pixels; expected at least 1 x 1"),
        ("<xmax>20</xmax>", "<xmax>NaN</xmax>", "has 'NaN' for xmax; expected a whole number"),
        ("<xmax>20</xmax>", "<xmax>0</xmax>", r"has the box \[1, 2, 0, 40\], empty or outside the picture of 50 x 40"),
        ("<xmin>21</xmin>", "<xmin>51</xmin>", r"has the box \[51, 5, 30, 9\], empty or outside"),
        ("<name>5</name>", "<name> </name>", "has no name in object 4; expected the id of a chain"),
        ("<scene>0</scene><nobndbox>1</nobndbox>", "", "has neither bndbox nor scene nor nobndbox in object 4"),
    ],
)
def test_malformed_annotations(folder, old, new, message):
    assert XML.count(old) == 1
    file = folder / "Annotations" / "10.xml"
    file.write_text(XML.replace(old, new))
    with pytest.raises(ValueError, match=rf"10.xml {message}"):
        read_annotations(file)


def test_a_document_type_in_another_encoding(folder):
    file = folder / "Annotations" / "10.xml"
    file.write_bytes(f'<?xml version="1.0" encoding="utf-16"?>{BOMB}{XML}'.encode("utf-16"))
    with pytest.raises(ValueError, match="has a document type"):
        read_annotations(file)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ('<?xml version="1.0" encoding="no-such"?>', "is no XML: unknown encoding"),
        ('<?xml version="1.0" encoding="rot13"?>', "is no XML: .*rot13"),
        ("<a:b/>", "is no XML: unbound prefix"),
    ],
)
def test_xml_that_python_reads_in_two_ways(folder, head, message):
    file = folder / "Annotations" / "10.xml"
    file.write_text(head + XML if head.startswith("<?") else XML.replace("<object>", f"{head}<object>"))
    with pytest.raises(ValueError, match=f"10.xml {message}"):
        read_annotations(file)


@pytest.mark.parametrize(
    "line",
    [
        "[/EN#1/people" + " " * 50_000,
        "[/EN#1" + "/a" * 50_000,
        "[/EN#1/people " + "a " * 50_000,
        "[/EN#1/people a" + " " * 50_000,
    ],
    ids=["blanks", "types", "words", "blanks after a word"],
)
def test_markup_without_end_takes_no_time(folder, line):
    file = folder / "Sentences" / "10.txt"
    file.write_text(line)
    began = time.process_time()
    with pytest.raises(ValueError, match="10.txt line 1 has the markup"):
        read_sentences(file)
    assert time.process_time() - began < 1
