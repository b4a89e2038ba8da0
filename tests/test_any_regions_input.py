"""Regions of any number that are broken or hostile: every layout says what is wrong, and takes no memory for it."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from region_writers import COUNTS, LAYOUTS, array, corners, encoded, flat, parquet, tsv

from omit_hf.data import load_image_text
from omit_hf.data.sources import stored_arrays


def fields(**changed):
    """A line of the TSV for test image 9, with other fields."""

    def change(folder):
        file = folder / "test_ims.tsv"
        lines = file.read_text().splitlines()
        names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
        values = dict(zip(names, lines[-1].split("\t"), strict=True)) | changed
        lines[-1] = "\t".join(each for each in values.values() if each is not None)
        file.write_text("\n".join(lines))

    return change


def save(name, values):
    return lambda folder: np.save(folder / name, values)


def savez(**values):
    return lambda folder: np.savez(folder / "test_ims/9.npz", **values)


def bomb(folder):
    """An archive that says it holds 2 GB."""
    with (
        zipfile.ZipFile(folder / "test_ims/9.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w", force_zip64=True) as file,
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**16, 2**13)})
        file.write(header.getvalue())
        for _ in range(2**9):
            file.write(bytes(2**22))


def other_compression(folder):
    with zipfile.ZipFile(folder / "test_ims/9.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("features.npy", bytes(100))


NINE = COUNTS[9]
BOXES, REGION = np.zeros((NINE, 4)), np.zeros((NINE, 8), np.float32)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (
            "flat",
            save("test_offsets.npy", [0, 5, 6]),
            "test_offsets.npy has 3 offsets and the captions are of 3 images",
        ),
        ("flat", save("test_offsets.npy", [0, 5, 5, 8]), "row 2 is 5 after 5; expected more"),
        ("flat", save("test_offsets.npy", [0, 5, 2, 8]), "row 2 is 2 after 5; expected more"),
        ("flat", save("test_offsets.npy", [0, 5, 6, 99]), "goes from 0 to 99; expected from 0 to 8, all regions"),
        ("flat", save("test_offsets.npy", [0.0, 5, 6, 8]), r"holds float64 \[4\]; expected integers"),
        ("flat", save("test_ims.npy", np.zeros((8, 2, 4))), r"shape \[8, 2, 4\]; expected \[all regions, width\]"),
        ("flat", save("test_ims.npy", np.full((8, 8), {})), "holds object .*expected rows of numbers"),
        ("flat", save("test_boxes.npy", np.zeros((7, 4))), r"test_boxes.npy has shape \[7, 4\]; expected \[8, 4\]"),
        ("flat", save("test_boxes.npy", np.float32([[9, 9, 5, 5]] * 8)), "row 0 has a box that ends before it begins"),
        ("flat", save("test_img_sizes.npy", np.zeros((3, 2))), "row 0 has a size of 0.0 x 0.0; expected whole numbers"),
        ("flat", lambda folder: (folder / "test_ims.tsv").touch(), "same regions in several layouts; expected one"),
        (
            "one_npy_an_image",
            save("test_ims/9.npy", np.zeros((0, 8))),
            r"9.npy has regions of shape \[0, 8\]; expected",
        ),
        ("one_npy_an_image", save("test_ims/10.npy", np.zeros((2, 9))), "regions of 10 are 9 numbers wide; expected 8"),
        ("one_npy_an_image", save("test_ims/9.npy", np.full((2, 8), {})), "9.npy holds object"),
        ("one_npy_an_image", lambda folder: (folder / "test_ims/9.npy").unlink(), "image 0: 9.npz is missing"),
        (
            "one_npy_an_image",
            lambda folder: (folder / "test_ids.txt").write_text("../train_ims/0\n10\n11\n"),
            "lies outside",
        ),
        ("one_npz_an_image", savez(boxes=BOXES), "holds boxes; expected the array features"),
        ("one_npz_an_image", savez(features=REGION, boxes=BOXES[1:]), rf"boxes of shape \[{NINE - 1}, 4\]; expected"),
        ("one_npz_an_image", savez(features=REGION), "has boxes, and 9 has none|9 has none"),
        ("one_npz_an_image", savez(features=np.full((2, 8), {})), "holds object"),
        ("one_npz_an_image", savez(features=REGION, boxes=BOXES, image_w=0, image_h=5), "size of 0.0 x 5.0"),
        ("one_npz_an_image", bomb, "features in .*9.npz has 2147483776 bytes; expected at most"),
        ("one_npz_an_image", other_compression, "compressed in another way"),
        ("one_npz_an_image", lambda folder: (folder / "test_ims/9.npz").write_bytes(b"PK"), "9.npz is no .npz file"),
        ("tsv", fields(num_boxes="0"), "test_ims.tsv line 3: num_boxes is 0; expected 1 to 10000"),
        ("tsv", fields(num_boxes="x"), "line 3: num_boxes is 'x'; expected a whole number"),
        ("tsv", fields(num_boxes="9" * 4000), "line 3: num_boxes is '999"),
        ("tsv", fields(num_boxes="3"), "line 3: features has .* expected base64 of 3|line 3: boxes has no base64"),
        ("tsv", fields(boxes="!" * len(encoded(corners(9)))), "line 3: boxes has no base64 of .* bytes"),
        ("tsv", fields(boxes=encoded(corners(10))), "line 3: boxes has no base64 of .* bytes"),
        ("tsv", fields(features=encoded(array(9))[:-1]), "line 3: features has .* characters; expected base64"),
        ("tsv", fields(features=""), "line 3: features has 0 characters"),
        ("tsv", fields(features=None), "line 3: 5 fields; expected 6 between tabs: image_id, image_w"),
        ("tsv", fields(image_w="0"), "line 3: image_w, image_h has a size of 0 x 480"),
        ("tsv", fields(image_id="10"), "line 3: 10 is there already, in line 2; leave out either"),
        ("tsv", fields(image_id="77"), "test_ims.tsv has no line of 9, which test_ids.txt has"),
        ("tsv", fields(features=encoded(np.zeros((NINE, 9)))), "regions of .* are . numbers wide; expected ."),
    ],
)
def test_bad_files(tmp_path, layout, change, message):
    LAYOUTS[layout](tmp_path)
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_image_text(tmp_path)


def test_a_line_of_the_tsv_that_never_ends(tmp_path, monkeypatch):
    tsv(tmp_path)
    monkeypatch.setattr("omit_hf.data.sources.region_layouts.MAX_LINE", 20)
    with pytest.raises(ValueError, match="train_ims.tsv line 1 has more than 20 bytes"):
        load_image_text(tmp_path)


def test_features_that_are_no_base64_are_found_when_they_are_read(tmp_path):
    tsv(tmp_path)
    fields(features="!" * (len(encoded(array(9))) - 2) + "==")(tmp_path)
    rows = load_image_text(tmp_path)["test"]
    with pytest.raises(ValueError, match="test_ims.tsv line 3 has no base64 of .* bytes"):
        rows[0]


def test_a_file_that_has_changed(tmp_path):
    flat(tmp_path)
    rows = load_image_text(tmp_path)["test"]
    file = tmp_path / "test_ims.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="test_ims.npy ends within the"):
        rows[2]


def test_an_archive_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path):
    header, shape = io.BytesIO(), (2**13, 8)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    held = header.getvalue() + bytes(2**26)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", held)
    content = (tmp_path / "a.npz").read_bytes()
    told = len(header.getvalue()) + 2**18
    (tmp_path / "a.npz").write_bytes(content.replace(len(held).to_bytes(4, "little"), told.to_bytes(4, "little")))
    del held, content
    tracemalloc.start()
    try:
        assert stored_arrays.archive_layout(tmp_path / "a.npz")["features"][0] == shape
        with pytest.raises(ValueError, match="Bad CRC-32"):
            stored_arrays.read_member(tmp_path / "a.npz", "features", shape)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[]], "row 0: features has no region"),
        ([None], "row 0: features has no region"),
        ([[[1.0, 2.0], [1.0]]], r"row 0: features has regions of \[1, 2\] numbers"),
        ([[[1.0, 2.0]], [[1.0]]], r"row 1: features has regions of \[1\] numbers; expected 2 each"),
        ([[[1.0, None]]], "1 numbers of features are null"),
        ([["a"]], "holds list<.*string>; expected a list of regions"),
        ([[[1.0, 2.0]] * 3], "row 0: boxes has 1 boxes and features 3 regions"),
    ],
)
def test_bad_lists(tmp_path, features, message):
    rows = [
        {"features": each, "boxes": [[0.0, 0.0, 1.0, 1.0]], "captions": ["a"], "image_id": str(n)}
        for n, each in enumerate(features)
    ]
    number = Value("string" if features == [["a"]] else "float32")
    kind = List(number) if features == [["a"]] else List(List(number))
    kinds = {"features": kind, "boxes": List(List(Value("float32")))}
    kinds |= {"captions": List(Value("string")), "image_id": Value("string")}
    table = Dataset.from_list(rows, features=Features(kinds))
    table.to_parquet(tmp_path / "test-0.parquet")
    with pytest.raises(ValueError, match=message):
        load_image_text(tmp_path, columns={"region_features": "features", "boxes": "boxes"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"region_features": "features", "image": "x"}}, "columns maps image and region_features"),
        ({"columns": {"region_features": "features"}, "streaming": True}, "goes without streaming and image_folder"),
        ({"columns": {"region_features": ["a", "b"]}}, r"columns maps region_features to \['a', 'b'\]"),
        ({"columns": {"region_features": "other"}}, "has no column other"),
    ],
)
def test_options(tmp_path, options, message):
    parquet(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_image_text(tmp_path, **options)
