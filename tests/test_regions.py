import pickle
import subprocess
import sys

import numpy as np
import pytest
import sources
import torch
from tiny import PROGRAMS
from torch.utils.data import DataLoader

from omit_hf.data import ImageTextInputs, load_image_text, load_regions

PROGRAM = PROGRAMS / "read_regions.py"


def by_number(split, number):
    return str(number)


def check(data):
    sources.expect(data, by_number, images=False)
    for split, numbers in sources.NUMBERS.items():
        for row, number in zip(data[split], numbers, strict=True):
            assert row["region_features"].dtype == np.float32
            assert np.array_equal(row["region_features"], sources.region_array(number))


@pytest.mark.parametrize("repeat", [1, 5])
def test_images_stored_once_or_once_a_caption(tmp_path, repeat):
    data = load_image_text(sources.regions(tmp_path, repeat)[0])
    check(data)
    assert data["train"].column_names == ["region_features", "captions", "image_id"]


@pytest.mark.parametrize("repeat", [1, 5])
def test_dev_may_be_longer_than_its_captions(tmp_path, repeat):
    sources.regions(tmp_path, repeat, boxes=True, surplus=2)
    data = load_image_text(tmp_path)
    check(data)
    assert data["validation"][2]["boxes"][0].tolist() == [value + 2 * repeat for value in (1, 2, 3, 4)]


def test_the_published_number_of_validation_images(tmp_path):
    data = load_image_text(sources.regions(tmp_path)[0], validation_images=2)
    assert data["validation"]["image_id"][:] == ["6", "7"]
    assert np.array_equal(data["validation"][1]["region_features"], sources.region_array(7))
    with pytest.raises(ValueError, match="validation_images is 0; expected at least 1"):
        load_image_text(tmp_path, validation_images=0)


def test_testall(tmp_path):
    sources.regions(tmp_path)
    for name in ("ims.npy", "caps.txt", "ids.txt"):
        (tmp_path / f"test_{name}").rename(tmp_path / f"testall_{name}")
    check(load_image_text(tmp_path, test="testall"))
    assert list(load_image_text(tmp_path)) == ["train", "validation"]
    for options in ({"only": ["test"]}, {"test": "testone"}):
        with pytest.raises(FileNotFoundError, match=r"No test(one)?_ims.npy in .*expected it for the test split"):
            load_image_text(tmp_path, **options)


def test_boxes_and_sizes(tmp_path):
    data = load_image_text(sources.regions(tmp_path, boxes=True)[0])
    row = data["train"][2]
    assert row["boxes"].shape == (4, 4)
    assert row["boxes"][3].tolist() == [3, 4, 5, 6]
    assert (row["width"], row["height"]) == (640, 480)


def test_ids_of_captions_give_images_the_first(tmp_path):
    sources.regions(tmp_path)
    (tmp_path / "test_ids.txt").write_text("".join(f"c{n}\n" for n in range(15)))
    assert load_regions(tmp_path)["test"]["image_id"][:] == ["c0", "c5", "c10"]


def test_other_numbers_become_float32(tmp_path):
    sources.regions(tmp_path)
    array = np.load(tmp_path / "test_ims.npy")
    np.save(tmp_path / "test_ims.npy", array.astype(np.float16))
    features = load_regions(tmp_path)["test"][1]["region_features"]
    assert features.dtype == np.float32
    assert np.array_equal(features, array[1].astype(np.float16).astype(np.float32))


def test_selecting_and_pickling_keep_the_rows(tmp_path):
    rows = load_regions(sources.regions(tmp_path, 5)[0])["train"]
    chosen = pickle.loads(pickle.dumps(rows.select([4, 1]).select_columns(["image_id", "region_features"])))
    assert chosen["image_id"][:] == ["4", "1"]
    assert np.array_equal(chosen[0]["region_features"], sources.region_array(4))
    assert np.array_equal(chosen[:]["region_features"][1], sources.region_array(1))
    assert rows.filter(lambda row: row["image_id"] == "3")["image_id"][:] == ["3"]


def first(batch):
    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_inputs(tmp_path, processor, workers):
    rows = load_regions(sources.regions(tmp_path)[0])["train"]
    inputs = ImageTextInputs(rows, processor)
    loader = DataLoader(range(len(inputs)), batch_size=7, collate_fn=inputs.pairs, num_workers=workers)
    batches = list(loader)
    assert [batch["region_features"].shape for batch in batches] == [(7, 4, 8)] * 4 + [(2, 4, 8)]
    assert "pixel_values" not in batches[0]
    expected = torch.from_numpy(np.stack([sources.region_array(n // 5) for n in range(7, 14)]))
    assert torch.equal(batches[1]["region_features"], expected)
    assert batches[1]["image_ids"].tolist() == [n // 5 for n in range(7, 14)]


# --- what can be wrong ------------------------------------------------------------------------------------------------


def truncate(folder):
    file = folder / "train_ims.npy"
    file.write_bytes(file.read_bytes()[:-1])


def drop_a_line(name):
    def change(folder):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:2] + lines[3:]))

    return change


def save(name, array):
    return lambda folder: np.save(folder / name, array)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def sizes(value):
    return save("test_img_sizes.npy", np.float64([[640, 480], [640, value], [640, 480]]))


def boxes(value):
    array = np.tile(np.float32([1, 2, 3, 4]), (3, 4, 1))
    array[2, 1, 3] = value
    return save("test_boxes.npy", array)


def header(shape):
    """A .npy file with a header of a shape, or of anything else, that numpy would not write."""
    content = {"descr": "<f4", "fortran_order": False, "shape": shape} if isinstance(shape, tuple) else shape
    text = f"{content}\n".encode()
    return lambda folder: (folder / "test_ims.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4 * 96)
    )


def shift_ids(folder):
    ids = [str(number) for number in sources.NUMBERS["test"] for _ in range(5)]
    (folder / "test_ids.txt").write_text("\n".join(["8", *ids[:-1]]) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, r"train_ims.npy is truncated: its header says \[6, 4, 8\] of float32, 896 bytes, and it has 895"),
        (drop_a_line("train_caps.txt"), r"train_caps.txt has 29 lines; expected 5 an image .* Is a line missing\?"),
        (write("train_caps.txt", ""), "train_caps.txt has 0 lines; expected 5 an image"),
        (drop_a_line("train_ids.txt"), "train_ids.txt has 5 lines; expected 6, one an image, or 30, one a caption"),
        (shift_ids, "test_ids.txt lines 1 to 5 have the ids 8, 9, 9, 9, 9; expected one and the same"),
        (write("test_ids.txt", "9\n\n11\n"), "test_ids.txt line 2 is empty; expected an id"),
        (save("test_ims.npy", np.zeros((4, 4, 8), np.float32)), "test_ims.npy has 4 rows and the captions are of 3"),
        (save("dev_ims.npy", np.zeros((2, 4, 8), np.float32)), "dev_ims.npy has 2 rows and the captions are of 3"),
        (save("test_ims.npy", np.zeros((3, 8), np.float32)), r"shape \[3, 8\]; expected \[images, regions, width\]"),
        (save("test_ims.npy", np.arange(480).reshape(15, 4, 8)), "rows 0 and 4 differ; expected 5 equal ones an image"),
        (save("test_ims.npy", np.full((3, 4, 8), "a")), "holds <U1 .*expected rows of numbers in row order"),
        (save("test_ims.npy", np.full((3, 4, 8), {})), "holds object .*expected rows of numbers"),
        (save("test_ims.npy", np.asfortranarray(np.zeros((3, 4, 8)))), "in column order; expected .* Save it anew"),
        (write("test_ims.npy", "no array"), "test_ims.npy is no .npy file"),
        (write("test_ims.npy", ""), "test_ims.npy is no .npy file"),
        (save("test_boxes.npy", np.zeros((3, 36, 4))), r"test_boxes.npy has shape \[3, 36, 4\]; expected \[3, 4, 4\]"),
        (save("test_boxes.npy", np.float32([[[9, 9, 5, 5]] * 4] * 3)), "a box that ends before it begins"),
        (
            save("test_img_sizes.npy", np.zeros((3, 2))),
            "test_img_sizes.npy has a size of 0.0 x 0.0 in row 0; expected widths and",
        ),
        (sizes(np.inf), "test_img_sizes.npy has a size of 640.0 x inf in row 1; expected .* from 1 to 2147483647"),
        (sizes(np.nan), "test_img_sizes.npy has a size of 640.0 x nan in row 1"),
        (sizes(0.5), "test_img_sizes.npy has a size of 640.0 x 0.5 in row 1"),
        (sizes(2.0**31), "test_img_sizes.npy has a size of 640.0 x 2147483648.0 in row 1"),
        (boxes(np.inf), r"test_boxes.npy row 2 has a box that is not finite, \[1.0, 2.0, 3.0, inf\]"),
        (header((-3, 4, 8)), r"test_ims.npy has the shape \[-3, 4, 8\] in its header; expected counts from 0"),
        (header((-3, -4, 8)), r"the shape \[-3, -4, 8\] in its header"),
        (header((2**32, 2**32, 4)), "test_ims.npy is truncated"),
        (header("[" * 4000), "test_ims.npy is no .npy file"),
        (header({1: 2, "a": 3}), "test_ims.npy is no .npy file"),
        (save("test_img_sizes.npy", np.full((3,), {})), "test_img_sizes.npy holds object"),
    ],
)
def test_bad_files(tmp_path, change, message):
    sources.regions(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_image_text(tmp_path)


@pytest.mark.parametrize("name", ["captions_per_image", "validation_images"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, True, 1.0, "5"])
def test_a_count_that_is_none(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; expected at least 1 image, as an integer"):
        load_image_text(sources.regions(tmp_path)[0], **{name: value})


def test_text_that_is_no_utf8(tmp_path):
    sources.regions(tmp_path)
    (tmp_path / "train_caps.txt").write_bytes(b"caf\xe9\n" * 30)
    with pytest.raises(ValueError, match="train_caps.txt is no UTF-8 text"):
        load_regions(tmp_path)


def test_every_problem_is_listed(tmp_path):
    sources.regions(tmp_path)
    truncate(tmp_path)
    lines = (tmp_path / "dev_caps.txt").read_text().splitlines()
    lines[2] = lines[9] = "  "
    (tmp_path / "dev_caps.txt").write_text("\n".join(lines) + "\n")
    drop_a_line("test_caps.txt")(tmp_path)
    with pytest.raises(ValueError, match="has 4 problems") as caught:
        load_regions(tmp_path)
    for problem in ("truncated", "dev_caps.txt line 3: empty", "dev_caps.txt line 10: empty", "14 lines"):
        assert problem in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    sources.regions(tmp_path)
    (tmp_path / "dev_ids.txt").unlink()
    with pytest.raises(FileNotFoundError, match="No dev_ids.txt in .*number the images: a different number a line"):
        load_regions(tmp_path)


def test_a_file_that_is_replaced_later(tmp_path):
    rows = load_regions(sources.regions(tmp_path)[0])["test"]
    np.save(tmp_path / "test_ims.npy", np.zeros((2, 4, 8), np.float32))
    with pytest.raises(ValueError, match="test_ims.npy has no row 2; it has 2 rows"):
        rows[2]


def coco_with_holes(folder, captions):
    """COCO's regions of the real shape, 33 GB, in a file that is one hole."""
    for prefix, count in {"train": 113_287, "dev": 1, "test": 1}.items():
        with (folder / f"{prefix}_ims.npy").open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, 36, 2048)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + count * 36 * 2048 * 4)
        caption = "a man rides a brown horse along the beach\n"
        (folder / f"{prefix}_caps.txt").write_text(caption * (captions * count))
        (folder / f"{prefix}_ids.txt").write_text("".join(f"{prefix}{n}\n" for n in range(count)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_read_of_33_gigabytes_is_not_kept(tmp_path):
    coco_with_holes(tmp_path, captions=1)  # five captions an image take longer to load, and 0.3 GB
    command = [sys.executable, PROGRAM, str(tmp_path), "1", "1536"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    read, grown, peak = map(int, result.stdout.splitlines()[-1].split())
    assert read == 432
    assert grown < 200, result.stdout  # a batch, thrice
    assert peak < 4096
