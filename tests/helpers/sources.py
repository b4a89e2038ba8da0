"""The same small data, 6 / 3 / 3 images of 5 captions, in every layout that a loader reads."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PIL

SIZES = {"train": 6, "validation": 3, "test": 3}
NUMBERS = {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}
KARPATHY = {"train": "train", "validation": "val", "test": "test"}
WORDS = ("red", "green", "blue", "grey", "pink", "teal", "plum", "gold", "rust", "lime", "navy", "wine")


def captions(number: int) -> list[str]:
    return [f"a {WORDS[number % 12]} picture, number {place}" for place in range(5)]


def picture(number: int) -> PIL.Image:
    return PIL.new("RGB", (32, 24), (20 * number, 100, 255 - 20 * number))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "png")
    return buffer.getvalue()


def expect(data, ids, images=True) -> None:
    """The data are these ones, with the ids that `ids` makes of a split and a number."""
    assert list(data) == list(SIZES)
    for split, numbers in NUMBERS.items():
        rows = data[split]
        assert rows["image_id"][:] == [ids(split, number) for number in numbers]
        assert rows["captions"][:] == [captions(number) for number in numbers]
        if images:
            assert [row["image"].convert("RGB").getpixel((3, 3)) for row in rows] == [
                picture(number).getpixel((3, 3)) for number in numbers
            ]


def karpathy(folder: Path) -> tuple[Path, dict]:
    """dataset_coco.json and the images that it names."""
    entries = []
    for split, numbers in NUMBERS.items():
        for number in numbers:
            place = "val2014" if split != "train" or number == 5 else "train2014"
            entries.append(
                {
                    "filepath": place,
                    "filename": f"COCO_{place}_{number:012d}.jpg",
                    "cocoid": number,
                    "imgid": number,
                    "split": "restval" if number == 5 else KARPATHY[split],
                    "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions(number)],
                }
            )
            (folder / "images" / place).mkdir(parents=True, exist_ok=True)
            (folder / "images" / place / entries[-1]["filename"]).write_bytes(png(number))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return folder / "dataset_coco.json", {"image_folder": str(folder / "images")}


def coco(folder: Path) -> tuple[Path, dict]:
    """COCO's own annotations, in which captions of different images lie mixed, beside Karpathy's JSON."""
    file, options = karpathy(folder)
    entries = json.loads(file.read_text())["images"]
    for place in ("train2014", "val2014"):
        chosen = [entry for entry in entries if entry["filepath"] == place]
        mixed = [(n, entry) for n in range(5) for entry in chosen]
        content = {
            "info": {},
            "images": [{"id": entry["cocoid"], "file_name": entry["filename"], "width": 32} for entry in chosen],
            "annotations": [
                {"id": n, "image_id": entry["cocoid"], "caption": entry["sentences"][n]["raw"]} for n, entry in mixed
            ],
        }
        (folder / f"captions_{place}.json").write_text(json.dumps(content))
    return folder, options


def image_folder(folder: Path, one_a_line: bool = False) -> tuple[Path, dict]:
    for split, numbers in NUMBERS.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for number in numbers:
            (folder / split / f"{number}.png").write_bytes(png(number))
            texts = captions(number) if one_a_line else [captions(number)]
            lines += [{"file_name": f"{number}.png", "text": text} for text in texts]
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, {}


def archives(folder: Path, ending: str = "txt") -> tuple[Path, dict]:
    """Two archives a split, in each of which the keys begin anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in NUMBERS.items():
        half = len(numbers) // 2
        for shard, chosen in enumerate((numbers[:half], numbers[half:])):
            with tarfile.open(folder / f"{split}-{shard:05d}.tar", "w") as archive:
                for key, number in enumerate(chosen):
                    text = "\n".join(captions(number)) + "\n"
                    if ending == "json":
                        text = json.dumps({"captions": captions(number), "url": "http://example.org"})
                    for name, content in ((f"{key:04d}.png", png(number)), (f"{key:04d}.{ending}", text.encode())):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
    return folder, {} if ending == "txt" else {"columns": {"captions": "json.captions"}, "captions_as": "list"}


def table(numbers, split=None, **columns) -> Dataset:
    """Rows with the columns of Flickr30K's data sets on the Hub."""
    rows = {
        "image": [{"bytes": png(number), "path": f"{number}.jpg"} for number in numbers],
        "caption": [captions(number) for number in numbers],
        "sentids": [[str(5 * number + place) for place in range(5)] for number in numbers],
        "filename": [f"{number}.jpg" for number in numbers],
    }
    features = {
        "image": Image(),
        "caption": List(Value("string")),
        "sentids": List(Value("string")),
        "filename": Value("string"),
    }
    if split is not None:
        rows["split"], features["split"] = [split(number) for number in numbers], Value("string")
    for name, values in columns.items():
        rows[name] = values
        features.pop(name, None)
    table = Dataset.from_dict({name: values for name, values in rows.items() if name in features})
    table = table.cast(Features(features))
    for name, values in columns.items():
        table = table.add_column(name, values)
    return table


FLICKR = {"captions": "caption", "image_id": "filename"}


def parquet(folder: Path) -> tuple[Path, dict]:
    """A file a split, two for the training split, as `umaru97/flickr30k_train_val_test` has them."""
    (folder / "data").mkdir(parents=True)
    table(range(4)).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    table(range(4, 6)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    table(NUMBERS["validation"]).to_parquet(folder / "data" / "val-00000-of-00001.parquet")
    table(NUMBERS["test"]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder, {"columns": FLICKR}


def split_of(number: int) -> str:
    return next(KARPATHY[split] for split, numbers in NUMBERS.items() if number in numbers)


def region_array(number: int, regions=4, width=8) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((regions, width)).astype(np.float32)


def regions(folder: Path, repeat: int = 1, boxes: bool = False, surplus: int = 0) -> tuple[Path, dict]:
    """The layout of SCAN; with `repeat` 5 each image is stored once a caption; dev has `surplus` rows more."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in NUMBERS.items():
        prefix = "dev" if split == "validation" else split
        more = surplus if prefix == "dev" else 0
        rows = [region_array(number) for number in [*numbers, *range(100, 100 + more)] for _ in range(repeat)]
        np.save(folder / f"{prefix}_ims.npy", np.stack(rows))
        lines = [caption for number in numbers for caption in captions(number)]
        (folder / f"{prefix}_caps.txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{prefix}_ids.txt").write_text("".join(f"{number}\n" for number in numbers for _ in range(repeat)))
        if boxes:
            corners = np.tile(np.float32([[1, 2, 3, 4]]), (len(rows), 4, 1)) + np.arange(len(rows))[:, None, None]
            np.save(folder / f"{prefix}_boxes.npy", corners)
            np.save(folder / f"{prefix}_img_sizes.npy", np.tile([[640, 480]], (len(rows), 1)))
    return folder, {}


# Solid colours that no background has: red and green tell the concept, blue the style.
CUTOUT_COLORS = [(255, 0), (0, 255), (255, 255), (0, 0), (255, 60), (60, 255), (255, 120), (120, 255), (60, 0), (0, 60)]
CUTOUT_NAMES = [["sun", "day star"], ["leaf"], ["lemon", "Fruit"], ["coal", "rock"], ["brick", "stone"]]
CUTOUT_NAMES += [["lime", "fruit"], ["orange", "fruit"], ["pear"], ["plum", "plum tree"], ["pine", "tree"]]
CUTOUT_STYLES = {"ink": 0, "wax": 8, "oil": 16, "clay": 24}


def cutouts(folder: Path, styles=CUTOUT_STYLES, names=CUTOUT_NAMES, left_out=()) -> Path:
    """Rectangles for `load_compositions`; `left_out` has pairs of a style and a number of a concept."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for style in styles:
        for number, own in enumerate(names):
            if (style, number) in left_out:
                continue
            file = f"{number}_{style}.png"
            picture = PIL.new("RGBA", (60, 50), (255, 255, 255, 0))
            picture.paste(
                (*CUTOUT_COLORS[number % len(CUTOUT_COLORS)], CUTOUT_STYLES[style], 255),
                (5, 5, 5 + 12 + 4 * number, 5 + 40),
            )
            picture.save(folder / file)
            lines.append({"file": file, "concept": own[0], "style": style, "names": own})
    (folder / "cutouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


# Those whose images are pictures.
WITH_PICTURES = {
    "karpathy": karpathy,
    "coco": coco,
    "image_folder": image_folder,
    "archives": archives,
    "parquet": parquet,
}
