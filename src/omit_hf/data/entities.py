"""Flickr30K Entities: which phrase of a caption of Flickr30K names which boxes of its picture.

Plummer et al., *Flickr30K Entities* (arXiv 1505.04870): the folders `Sentences` and `Annotations` of its annotations.
"""

import logging
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from datasets import Dataset, Features, List, Value, concatenate_datasets

from omit_hf.data.phrases import NO_BOX
from omit_hf.data.schema import DataError, listed
from omit_hf.data.sources.scenes import FEATURES as SCENES_FEATURES
from omit_hf.parsing import shown, text_lines, told

logger = logging.getLogger(__name__)

FOLDERS = {"Sentences": ".txt", "Annotations": ".xml"}
MAX_PIXEL = 2**31 - 1
NOT_VISUAL = "0"  # the chain of phrases that name nothing to be seen
# Possessive where it may, or many blanks without an end would take their square.
PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]++)++)\s++([^\[\]]*[^\[\]\s])\s*\]")
FEATURES = Features(
    {
        "captions": List(Value("string")),
        "width": Value("int32"),
        "height": Value("int32"),
        "boxes": SCENES_FEATURES["boxes"],
        "phrases": SCENES_FEATURES["phrases"],
    }
)


@dataclass
class EntitiesReport:
    """The outcome of joining Flickr30K Entities to a split.

    Args:
        images: images kept: they have annotations and an annotated caption.
        captions: captions kept.
        unannotated: ids of the images without annotations, which are left out.
        unmatched: captions without annotations, as `id: caption`. They are left out, and so are images without any
            other caption.
        phrases: phrases of the captions kept.
        boxed: phrases with at least one box.
        not_visual: phrases of chain 0, which name nothing visible.
        clipped: boxes that reached beyond their picture, and were cut at its edge.
    """

    images: int = 0
    captions: int = 0
    unannotated: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    phrases: int = 0
    boxed: int = 0
    not_visual: int = 0
    clipped: int = 0

    def __str__(self) -> str:
        return (
            f"Flickr30K Entities: {self.images} images, {self.captions} captions, {self.phrases} phrases, of which "
            f"{self.boxed} name a box and {self.not_visual} nothing to be seen; left out: {len(self.unannotated)} "
            f"images without annotations, {len(self.unmatched)} captions that the annotations do not have; "
            f"{self.clipped} boxes cut at the picture's edge."
        )


@dataclass
class Annotations:
    """The boxes of an image.

    Args:
        width, height: size of the picture.
        boxes: x0, y0, x1, y1, in pixels from the picture's top left corner.
        chains: numbers of the boxes of every chain of phrases that has some.
        clipped: boxes cut at the picture's edge.
    """

    width: int
    height: int
    boxes: list[list[float]]
    chains: dict[str, list[int]]
    clipped: int


def load_entities(folder: str | Path, split: Dataset) -> tuple[Dataset, EntitiesReport]:
    """Join the boxes of Flickr30K Entities to the phrases of a split's captions.

    Entities has a test split of its own. Do not use it for a model that was trained on Karpathy's split: most of its
    images lie in Karpathy's training split. So the annotations are joined to the given split, by the name of the image
    file; annotations of other images are ignored.

    Args:
        folder: holds `Sentences/*.txt` and `Annotations/*.xml`.
        split: split of Flickr30K, with Karpathy's captions and the file names as `image_id` (suffix and folders do not
            matter). Captions are compared by letters and digits, since Entities separates words and punctuation.

    Returns:
        The annotated rows with their annotated captions, and `width`, `height`, `boxes` and `phrases` as in Scenes: a
        phrase has an entry per box that it names, or one with object −1 if it names none. `boxes` of precomputed
        regions become `region_boxes`. And a report of what was left out, which is also logged.

    Raises:
        FileNotFoundError: if there is no such folder, or a part of it is missing.
        ValueError: if no image is annotated; or lists every problem of the files: one of the two is missing, markup or
            XML is malformed, XML has a document type, annotations are of another image, a box lies outside the picture.
    """
    folder = Path(folder)
    for name in FOLDERS:
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"No {name} in {folder}; expected the annotations of Flickr30K Entities, Sentences/*.txt and "
                "Annotations/*.xml."
            )
    report, problems, kept, rows = EntitiesReport(), [], [], []
    for number, (image_id, captions) in enumerate(zip(split["image_id"], split["captions"], strict=True)):
        texts, boxes = (folder / name / f"{Path(image_id).stem}{ending}" for name, ending in FOLDERS.items())
        if not texts.is_file() and not boxes.is_file():
            report.unannotated.append(image_id)
            continue
        try:
            row = _row(image_id, captions, read_sentences(texts), read_annotations(boxes), report)
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
            continue
        if row["captions"]:
            kept.append(number)
            rows.append(row)
    if not problems and {"width", "height"} <= set(split.column_names):
        problems = _other_sizes(split.select(kept), rows)
    if problems:
        raise DataError(f"{folder}, joined to the split,", problems)
    if not rows:
        raise ValueError(
            f"{folder} annotates none of the {len(split)} images of the split ({listed(split['image_id'][:3])} …) with "
            "captions of theirs; expected images of Flickr30K, with their file names as image_id."
        )
    report.images = len(rows)
    (logger.warning if report.unannotated or report.unmatched else logger.info)("%s", report)
    base = split.select(kept)
    if "region_features" in base.column_names and "boxes" in base.column_names:
        base = base.rename_column("boxes", "region_boxes")
    base = base.remove_columns([name for name in FEATURES if name in base.column_names])
    return concatenate_datasets([base, Dataset.from_list(rows, features=FEATURES)], axis=1), report


def read_sentences(file: Path) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """The captions of a file of `Sentences`, a line each.

    Returns:
        Each caption without its markup, and its phrases: their characters, from the first to before the last, and the
        id of the chain of phrases that name the same.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no UTF-8 text, or its markup is not `[/EN#chain/type words]`, with perhaps more types.
    """
    try:
        lines = [line.removesuffix("\n") for line in text_lines(file)]
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing.") from None
    sentences = []
    for number, line in enumerate(lines, start=1):
        caption, phrases, done = "", [], 0
        for match in PHRASE.finditer(line):
            caption += line[done : match.start()]
            phrases.append((len(caption), len(caption) + len(match[3]), match[1]))
            caption += match[3]
            done = match.end()
        caption += line[done:]
        if "[/" in caption:
            raise ValueError(
                f"{file} line {number} has the markup {caption[caption.index('[/') :]!r:.60}; expected "
                "'[/EN#chain/type words]'."
            )
        if caption.strip():
            sentences.append((caption, phrases))
    return sentences


def read_annotations(file: Path) -> Annotations:
    """The boxes of a file of `Annotations`: XML in the manner of PASCAL VOC, with the ids of chains as names.

    An object has one name or several, and a box in pixels from 1, its last row and column included, or flags that it
    has none. A document type, and with it every entity, is refused.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such XML, is of another image, or a box lies outside the picture.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing.") from None
    try:
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = _refuse_document_type
        guard.Parse(content, True)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as error:  # the last for an unknown encoding
        raise ValueError(f"{file} is no XML: {told(error)}.") from error
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    try:
        named = root.findtext("filename", default="").strip()
        if Path(named).stem != file.stem:
            raise ValueError(f"is of the image {named!r}; expected that of the file's own name")
        size = root.find("size")
        width, height = _whole(size, "width"), _whole(size, "height")
        if min(width, height) < 1:
            raise ValueError(f"has a size of {width} x {height} pixels; expected at least 1 x 1")
        found = Annotations(width, height, boxes=[], chains={}, clipped=0)
        for number, each in enumerate(root.iter("object"), start=1):
            names = [name.text.strip() for name in each.findall("name") if name.text and name.text.strip()]
            if not names:
                raise ValueError(f"has no name in object {number}; expected the id of a chain of phrases")
            box = each.find("bndbox")
            if box is None:
                if each.find("scene") is None and each.find("nobndbox") is None:
                    raise ValueError(f"has neither bndbox nor scene nor nobndbox in object {number}")
                continue
            corners = [_whole(box, name) for name in ("xmin", "ymin", "xmax", "ymax")]
            clipped = _edges(corners, width, height)
            found.clipped += clipped != [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]
            for name in names:
                found.chains.setdefault(name, []).append(len(found.boxes))
            found.boxes.append([float(edge) for edge in clipped])
    except ValueError as error:
        raise ValueError(f"{file} {error}.") from error
    return found


def _refuse_document_type(*_):
    raise ValueError("has a document type, which could define entities; expected plain XML.")


def _whole(parent, name: str) -> int:
    text = None if parent is None else parent.findtext(name)
    try:
        number = int(text)
    except (TypeError, ValueError):
        number = None
    if number is None or abs(number) > MAX_PIXEL:
        raise ValueError(f"has {shown(text)} for {name}; expected a whole number, {MAX_PIXEL} at most")
    return number


def _edges(corners: list[int], width: int, height: int) -> list[int]:
    """Edges of a box between pixels, cut at the picture's; of corners that are pixels, counted from 1."""
    first_x, first_y, last_x, last_y = corners
    edges = [max(first_x - 1, 0), max(first_y - 1, 0), min(last_x, width), min(last_y, height)]
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise ValueError(f"has the box {corners}, empty or outside the picture of {width} x {height} pixels")
    return edges


def _row(image_id, captions, sentences, annotations: Annotations, report: EntitiesReport) -> dict:
    """The columns of an image; adds to the report."""
    remaining = [(_letters(sentence), phrases) for sentence, phrases in sentences]
    kept, entries = [], []
    for caption in captions:
        letters, places = _letters(caption)
        match = next((each for each in remaining if each[0][0] == letters), None)
        if match is None:
            report.unmatched.append(f"{image_id}: {caption}")
            continue
        remaining.remove(match)
        (_, parted), phrases = match
        for start, end, chain in phrases:
            covered = [place for place, at in zip(places, parted, strict=True) if start <= at < end]
            if not covered:
                continue  # marks alone
            objects = annotations.chains.get(chain, [])
            span = {"caption": len(kept), "start": covered[0], "end": covered[-1] + 1}
            entries += [{**span, "object": each} for each in objects or [NO_BOX]]
            report.phrases += 1
            report.boxed += bool(objects)
            report.not_visual += chain == NOT_VISUAL
        kept.append(caption)
    report.captions += len(kept)
    report.clipped += annotations.clipped if kept else 0
    return {
        "captions": kept,
        "width": annotations.width,
        "height": annotations.height,
        "boxes": annotations.boxes,
        "phrases": entries,
    }


def _letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text, in lower case and without accents, and the place of each in it."""
    found = [
        (each, place)
        for place, character in enumerate(text)
        for each in unicodedata.normalize("NFKD", character).casefold()
        if each.isalnum()
    ]
    return "".join(each for each, _ in found), [place for _, place in found]


def _other_sizes(split: Dataset, rows: list[dict]) -> list[str]:
    """Images whose size in the split is not that of the annotations, in whose pixels the boxes are."""
    problems = []
    for image_id, width, height, row in zip(split["image_id"], split["width"], split["height"], rows, strict=True):
        if (width, height) != (row["width"], row["height"]):
            sizes = f"{width} x {height} pixels in the split, and {row['width']} x {row['height']} in the annotations"
            problems.append(f"{image_id} has {sizes}")
    return problems
