"""Regions whose number differs from image to image: loaders, inputs, scores."""

import base64
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import sources
import torch
from datasets import Dataset, Features, List, Value
from tiny import REGIONS, TEXT, tiny_config, tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import ImageTextInputs, cache_states, find_problems, load_image_text
from omit_hf.data.sources import stored_arrays
from omit_hf.evaluation import evaluate_split, split_similarity
from omit_hf.training import Recipe, train

COUNTS = {number: 1 + number % 5 for numbers in sources.NUMBERS.values() for number in numbers}


def array(number):
    return sources.region_array(number, COUNTS[number])


def corners(number):
    return np.float32([[n, 1, n + 2.5, 4] for n in range(COUNTS[number])])


def texts(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in sources.NUMBERS.items():
        prefix = "dev" if split == "validation" else split
        lines = [caption for number in numbers for caption in sources.captions(number)]
        (folder / f"{prefix}_caps.txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{prefix}_ids.txt").write_text("".join(f"{number}\n" for number in numbers))
        yield prefix, numbers


def flat(folder):
    for prefix, numbers in texts(folder):
        np.save(folder / f"{prefix}_ims.npy", np.concatenate([array(n) for n in numbers]))
        np.save(folder / f"{prefix}_boxes.npy", np.concatenate([corners(n) for n in numbers]))
        np.save(folder / f"{prefix}_offsets.npy", np.cumsum([0, *(COUNTS[n] for n in numbers)]))
        np.save(folder / f"{prefix}_img_sizes.npy", np.tile([[640, 480]], (len(numbers), 1)))


def one_npy_an_image(folder):
    for prefix, numbers in texts(folder):
        (folder / f"{prefix}_ims").mkdir()
        for number in numbers:
            np.save(folder / f"{prefix}_ims" / f"{number}.npy", array(number))


def one_npz_an_image(folder):
    for prefix, numbers in texts(folder):
        (folder / f"{prefix}_ims").mkdir()
        for number in numbers:
            save = np.savez_compressed if number % 2 else np.savez
            values = {"features": array(number), "boxes": corners(number), "image_w": 640, "image_h": 480}
            save(folder / f"{prefix}_ims" / f"{number}.npz", **values)


def encoded(values):
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def line(number):
    return "\t".join([str(number), "640", "480", str(COUNTS[number]), encoded(corners(number)), encoded(array(number))])


def tsv(folder):
    for prefix, numbers in texts(folder):
        lines = [line(number) for number in numbers][::-1]
        (folder / f"{prefix}_ims.tsv").write_text("".join(f"{each}\n" for each in lines))


def parquet(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in sources.NUMBERS.items():
        rows = [
            {
                "features": array(number).tolist(),
                "boxes": corners(number).tolist(),
                "captions": sources.captions(number),
                "image_id": str(number),
            }
            for number in numbers
        ]
        Dataset.from_list(rows).to_parquet(folder / f"{split}-00000.parquet")
    return {"columns": {"region_features": "features", "boxes": "boxes"}}


LAYOUTS = {each.__name__: each for each in (flat, one_npy_an_image, one_npz_an_image, tsv, parquet)}


@pytest.fixture
def region_model(processor):
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    model = OmitModel(tiny_config(vision_config={**REGIONS, "feature_size": 8}, text_config=text)).eval()
    return model, OmitProcessor(None, processor.tokenizer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout, region_model):
    options = LAYOUTS[layout](tmp_path) or {}
    data = load_image_text(tmp_path, **options)
    assert find_problems(data, read_images=True) == []
    for split, numbers in sources.NUMBERS.items():
        assert data[split]["image_id"][:] == [str(number) for number in numbers]
        for row, number in zip(data[split], numbers, strict=True):
            assert row["captions"] == sources.captions(number)
            assert np.array_equal(np.float32(row["region_features"]), array(number))
            if layout != "one_npy_an_image":
                assert np.array_equal(np.float32(row["boxes"]), corners(number))
            if layout in ("flat", "one_npz_an_image", "tsv"):
                assert (row["width"], row["height"]) == (640, 480)

    model, processor = region_model
    numbers = sources.NUMBERS["train"]
    inputs = ImageTextInputs(data["train"], processor).images(range(len(numbers)))
    assert inputs["region_mask"].sum(1).tolist() == [COUNTS[number] for number in numbers]
    assert inputs["region_features"].dtype == torch.float32
    padded = torch.zeros(len(numbers), max(COUNTS[number] for number in numbers), 8)
    for row, number in zip(padded, numbers, strict=True):
        row[: COUNTS[number]] = torch.from_numpy(array(number))
    assert torch.equal(inputs["region_features"], padded)

    scores = split_similarity(model, processor, data["train"], batch_size=3, progress=False)
    words = processor(text=[text for number in numbers for text in sources.captions(number)])
    with torch.no_grad():
        alone = [model(**words, region_features=torch.from_numpy(array(n))[None]).similarity for n in numbers]
    torch.testing.assert_close(torch.from_numpy(scores), torch.cat(alone), rtol=0, atol=1e-6)


def test_images_of_one_number_have_no_mask(tmp_path, region_model):
    rows = load_image_text(sources.regions(tmp_path)[0])["train"]
    assert set(ImageTextInputs(rows, region_model[1]).images([0, 1])) == {"region_features"}


def test_an_image_without_regions(region_model):
    """In a data set that is made by hand, which no loader has checked."""
    kinds = {"region_features": List(List(Value("float32"))), "captions": List(Value("string"))}
    rows = [
        {"region_features": each, "captions": ["a"], "image_id": f"im{n}"} for n, each in enumerate([[[1.0] * 8], []])
    ]
    split = Dataset.from_list(rows, features=Features({**kinds, "image_id": Value("string")}))
    with pytest.raises(ValueError, match="Image 'im1' has region_features of shape .*; expected .* K from 1"):
        ImageTextInputs(split, region_model[1]).images([0, 1])


@pytest.mark.parametrize("matching", ["omit", "ot", "maxsim", "chan", "scan_t2i", "scan_i2t", "mean", "gpo", "pem"])
def test_scores_do_not_depend_on_padding(matching):
    """Neither on how much there is, nor on what it holds, nor on where it is; images of no region have defined ones."""
    torch.manual_seed(0)
    model = OmitModel(tiny_config(vision_config=REGIONS, matching=matching)).eval()
    ids = torch.randint(1, 30, (3, 5))
    counts = torch.tensor([3, 6, 1, 0])
    mask = torch.arange(6) < counts[:, None]
    regions = torch.randn(4, 6, 10)
    order = torch.stack([torch.randperm(9) for _ in range(4)])
    wide = torch.cat([regions, 1e6 * torch.randn(4, 3, 10)], 1).gather(1, order[..., None].expand(-1, -1, 10))
    wide_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1).gather(1, order)
    with torch.no_grad():
        scores = model(ids, region_features=regions, region_mask=mask).similarity
        other = model(ids, region_features=wide, region_mask=wide_mask).similarity
    assert scores.isfinite().all()
    if matching != "gpo":  # sorts values, whose ties keep the order
        torch.testing.assert_close(other, scores, rtol=0, atol=2e-6)
    for number, count in enumerate(counts[:3]):
        with torch.no_grad():
            alone = model(ids, region_features=regions[number : number + 1, :count]).similarity[0]
        torch.testing.assert_close(scores[number], alone, rtol=0, atol=2e-6)


def test_training_drops_a_share_of_each_images_own():
    """Exactly int(0.8 · K) stay, of padding nothing, and padding is in no statistic of the batch norm."""
    torch.manual_seed(0)
    model = OmitModel(tiny_config(vision_config={**REGIONS, "kept_share": 0.8})).train()
    counts = torch.arange(1, 101)
    mask = torch.arange(100) < counts[:, None]
    regions = torch.randn(100, 100, 10).masked_fill(~mask[..., None], 1e9)
    out = model.get_image_features(region_features=regions, region_mask=mask)
    assert out.mask.sum(1).tolist() == [max(1, int(0.8 * count)) for count in range(1, 101)]
    assert out.mask.shape[1] == 80
    assert model.vision_encoder.mlp[1].running_var.max() < 10


@pytest.mark.parametrize("layout", ["flat", "tsv", "parquet"])
def test_training(tmp_path, layout):
    """Of an image of one region too, with workers that read the files; then evaluation of what was saved."""
    options = LAYOUTS[layout](tmp_path / "data") or {}
    recipe = tiny_recipe(
        data=str(tmp_path / "data"),
        data_options=options,
        vision_config={**REGIONS, "feature_size": 8},
        image_processor=None,
        num_epochs=1,
        num_workers=2 if layout == "tsv" else 0,
        output_dir=str(tmp_path / "run"),
    )
    metrics = train(Recipe(**recipe))
    model, processor = (each.from_pretrained(tmp_path / "run") for each in (OmitModel, OmitProcessor))
    found, _ = evaluate_split(model, processor, load_image_text(tmp_path / "data", **options)["test"], batch_size=2)
    assert {name: metrics["test"][name] for name in found} == pytest.approx(found)


def test_states_of_words_beside_them(tmp_path, region_model):
    model, processor = region_model
    tsv(tmp_path / "data")
    data = load_image_text(tmp_path / "data")
    cached = cache_states(model, processor, data, tmp_path / "cache", image=False, text=True)
    own, kept = (ImageTextInputs(each["train"], processor).pairs(range(12)) for each in (data, cached))
    assert kept.keys() - own.keys() == {"text_states"}
    with torch.no_grad():
        torch.testing.assert_close(model(**kept).similarity, model(**own).similarity)


def test_a_folder_that_only_ends_so_is_none_of_regions(tmp_path):
    sources.image_folder(tmp_path)
    (tmp_path / "other_ims").mkdir()
    assert "image" in load_image_text(tmp_path)["train"].column_names


# --- what can be wrong ------------------------------------------------------------------------------------------------


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
