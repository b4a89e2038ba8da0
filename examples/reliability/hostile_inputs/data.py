"""Sources of images and captions."""

import collections
import io
import json
import os
import random
from pathlib import Path

from PIL import Image

from hostile_inputs.case import ANY, REFUSED, Case, WrongValue
from hostile_inputs.mutations import (
    EVIL,
    mutate_json,
    mutate_lines,
)
from omit_hf.data import check_data, describe_split, load_image_text
from omit_hf.data.sources.cutouts import read_cutouts

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
OF_IMAGES = ("train", "restval", "val", "test")
CAPTIONS = [[f"a {word} thing, number {n}" for n in (0, 1)] for word in ("red", "grün", "blue", "grey")]
# Names that a file may have, and a data file then may name.
ODD_NAMES = (
    f"a{EVIL}.png",
    "a'b\"c.png",
    "\u202egnp.png",
    "\U0001f1e9\U0001f1ea.png",
    "~.png",
    " a .png",
    "-rf.png",
    "a%00b.png",
    "..png",
    "e\u0301.png",
    "{0}.png",
    "a\\b.png",
)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (50 * number, 90, 200)).save(file, "png")
    return file.getvalue()


PNGS = [png(number) for number in range(4)]


def rows_of(source: Path, **options) -> dict:
    """What the package reads of a source: the id, captions and first pixel of each image of each split."""
    data = load_image_text(source, **options)
    check_data(data, list(data), read_images=True)
    for rows in data.values():
        describe_split(rows)
    return {
        split: [
            (image_id, list(captions), None if image is None else image.convert("RGB").getpixel((0, 0)))
            for image_id, captions, image in zip(
                rows["image_id"],
                rows["captions"],
                rows["image"] if "image" in rows.column_names else [None] * len(rows),
                strict=True,
            )
        ]
        for split, rows in data.items()
    }


def expected_rows(source, pictures: dict[str, bytes], found) -> object:
    """What must be read, by the plain meaning of the data: of (split, name, captions) as they come, or a REFUSED.

    Args:
        source: makes them of what Python's own readers read; whatever it raises means that nothing may be read.
        pictures: by their names.
        found: what Python's own readers read.
    """
    rows, seen = {}, set()
    try:
        for split, name, captions in source(found):
            path = os.path.normpath(os.path.join("/", "root", name))
            number = pictures[os.path.relpath(path, "/root")]
            captions = [" ".join(each.lstrip("\ufeff").split()) for each in captions]
            if not captions or not all(captions) or number in seen or "\0" in name:
                return REFUSED
            "".join([name, *captions]).encode()
            seen.add(number)
            rows.setdefault(split, []).append((name, captions, (50 * number, 90, 200)))
    except Exception:
        return REFUSED
    splits = [split for split in ("train", "validation", "test") if split in rows]
    return {split: rows[split] for split in splits} if splits else REFUSED


def strict_json(content: bytes):
    """What a file of JSON says, by Python's own reader.

    Raises:
        ValueError: if it says nothing, or a name twice.
    """
    text = content.decode("utf-8-sig").lstrip("\ufeff")
    if "\0" in text:
        raise ValueError("NUL")
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def or_refused(read, content: bytes):
    try:
        return read(content)
    except (ValueError, RecursionError):
        return REFUSED


# --- JSON -------------------------------------------------------------------------------------------------------------


def _odd_name(rng: random.Random) -> str | None:
    return rng.choice(ODD_NAMES) if rng.random() < 0.1 else None


def _add_traps(folder: Path) -> None:
    """What a name may lead to, and is no picture."""
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")


def _entries(folder: Path, odd: str | None) -> tuple[list[dict], dict[str, int]]:
    """Karpathy's entries of four pictures, which are made; and the pictures' numbers by their names."""
    entries, pictures = [], {}
    (folder / "images" / "a").mkdir(parents=True)
    _add_traps(folder / "images")
    for number, split in enumerate(OF_IMAGES):
        name = odd if odd is not None and number == 1 else f"COCO_val2014_{number:012d}.png"
        place = "a" if number == 2 else ""
        (folder / "images" / place / name).write_bytes(PNGS[number])
        pictures[os.path.join(place, name)] = number
        sentences = [{"raw": text, "sentid": 10 * number + n} for n, text in enumerate(CAPTIONS[number])]
        entry = {"filename": name, "cocoid": number, "split": split, "sentences": sentences}
        entries.append({"filepath": place, **entry} if place else entry)
    return entries, pictures


def karpathy(rng: random.Random, folder: Path) -> Case:
    entries, pictures = _entries(folder, _odd_name(rng))
    what, content = mutate_json(rng, {"images": entries, "dataset": "coco"})
    file = folder / "dataset.json"
    file.write_bytes(content)

    def source(found):
        for entry in found["images"]:
            name = str(Path(entry.get("filepath", "")) / entry["filename"])
            if not isinstance(entry["filename"], str) or not isinstance(entry["sentences"], list):
                raise ValueError
            yield SPLITS[entry["split"]], name, [each["raw"] for each in entry["sentences"]]

    expected = expected_rows(lambda _: source(strict_json(content)), pictures, None)
    return Case(
        "Karpathy's JSON", what, lambda: rows_of(file, image_folder=folder / "images"), expected, ("dataset.json",)
    )


def coco(rng: random.Random, folder: Path) -> Case:
    entries, _ = _entries(folder, None)
    number = lambda entry: entry["cocoid"]  # noqa: E731
    files = {
        "captions_train2014.json": [entry for entry in entries if number(entry) < 2],
        "captions_val2014.json": [entry for entry in entries if number(entry) >= 2],
    }
    pictures, documents = {}, {"dataset_coco.json": {"images": entries}}
    for file, chosen in files.items():
        place = file[9:-5]
        (folder / "images" / place).mkdir()
        for entry in chosen:
            (folder / "images" / place / entry["filename"]).write_bytes(PNGS[number(entry)])
            pictures[f"{place}/{entry['filename']}"] = number(entry)
        documents[file] = {
            "images": [{"id": number(entry), "file_name": entry["filename"]} for entry in chosen],
            "annotations": [
                {"image_id": number(entry), "id": each["sentid"], "caption": each["raw"]}
                for entry in chosen
                for each in entry["sentences"]
            ],
        }
    changed = rng.choice(list(documents))
    what, content = mutate_json(rng, documents[changed])
    contents = {name: json.dumps(document).encode() for name, document in documents.items()} | {changed: content}
    for name, each in contents.items():
        (folder / name).write_bytes(each)

    def source(found):
        names, captions = {}, collections.defaultdict(list)
        for file in files:
            for each in found[file]["images"]:
                name = f"{file[9:-5]}/{each['file_name']}"
                if not isinstance(each["id"], int) or names.setdefault(each["id"], name) != name:
                    raise ValueError
            for each in found[file]["annotations"]:
                if isinstance(each["image_id"], bool) or not isinstance(each["image_id"], int):
                    raise ValueError
                captions[each["image_id"]].append(each["caption"])
                each["caption"].encode()
        if True in [isinstance(each["id"], bool) for file in files for each in found[file]["images"]]:
            raise ValueError
        for entry in found["dataset_coco.json"]["images"]:
            if isinstance(entry["cocoid"], bool):
                raise ValueError
            yield SPLITS[entry["split"]], names[entry["cocoid"]], captions[entry["cocoid"]]

    read = lambda _: source({name: strict_json(each) for name, each in contents.items()})  # noqa: E731
    expected = expected_rows(read, pictures, None)
    return Case(
        "COCO's annotations",
        what,
        lambda: rows_of(folder, image_folder=folder / "images"),
        expected,
        (changed, "dataset_coco.json"),
    )


def image_folder(rng: random.Random, folder: Path) -> Case:
    odd, lines, pictures = _odd_name(rng), {"train": [], "validation": [], "test": []}, {}
    for number, split in enumerate(["train", "train", "validation", "test"]):
        name = odd if odd is not None and number == 1 else f"{number}.png"
        (folder / split / "a").mkdir(parents=True, exist_ok=True)
        (folder / split / name).write_bytes(PNGS[number])
        pictures[f"{split}/{name}"] = number
        lines[split] += [{"file_name": name, "text": text} for text in CAPTIONS[number]]
    changed = rng.choice(list(lines))
    _add_traps(folder / changed)
    what, content = mutate_lines(rng, lines[changed])
    for split, each in lines.items():
        whole = "".join(json.dumps(line) + "\n" for line in each).encode()
        (folder / split / "metadata.jsonl").write_bytes(content if split == changed else whole)

    def source(_):
        for split in lines:
            found = {}
            text = (folder / split / "metadata.jsonl").read_bytes().decode("utf-8-sig")
            for line in text.split("\n"):
                if line.lstrip("\ufeff").strip():
                    entry = strict_json(line.encode(errors="surrogatepass"))
                    if not _is_flat(entry):
                        raise ValueError
                    texts = entry["text"]
                    found.setdefault(entry["file_name"], []).extend([texts] if isinstance(texts, str) else texts)
                    if not isinstance(texts, str | list) or "\0" in line:
                        raise ValueError
            yield from ((split, f"{split}/{name}", captions) for name, captions in found.items())

    return Case(
        "metadata.jsonl",
        what,
        lambda: rows_of(folder),
        expected_rows(source, pictures, None),
        ("metadata.jsonl", folder.name),
    )


def _is_flat(value, depth: int = 50) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (depth > 0 and all(_is_flat(each, depth - 1) for each in inner))


def cutouts(rng: random.Random, folder: Path) -> Case:
    lines = []
    for number in range(3):
        (folder / f"{number}.png").write_bytes(PNGS[number])
        lines.append({"file": f"{number}.png", "concept": f"thing {number}", "style": "ink", "names": [f"n{number}"]})
    _add_traps(folder)
    what, content = mutate_lines(rng, lines)
    (folder / "cutouts.jsonl").write_bytes(content)

    def read():
        found = read_cutouts(folder)
        for by_concept in found.drawings.values():
            for concept, files in by_concept.items():
                if not found.names[concept] or not all(file.parent == folder for file in files):
                    raise WrongValue(found)
        return None

    return Case("cutouts.jsonl", what, read, ANY, ("cutouts.jsonl",))
