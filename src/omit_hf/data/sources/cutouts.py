"""A folder of cut-outs: drawings of things, each with the names of what it shows and the style that it is drawn in.

The folder holds the drawings and `cutouts.jsonl`, with a line for each:

    {"file": "noto/dog.png", "concept": "dog", "style": "noto", "names": ["dog", "hound"]}

A drawing is any image that PIL reads. What is transparent is not part of it; of an opaque one, the near-white paper is
not that is connected to the border. A name holds of every concept that has it, and of no other.
"""

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw
from tqdm.auto import tqdm

from omit_hf.data.pictures import MAX_PIXELS
from omit_hf.data.schema import DataError, tidy
from omit_hf.data.sources.picture_files import file_identity, file_within
from omit_hf.modeling.pictures_omit import BoundedFile, upright
from omit_hf.parsing import label, parse_json, shown, text_lines

CUTOUTS = "cutouts.jsonl"
PAPER = 245  # the least value of the channels of white paper
VISIBLE = 32  # the least opacity, of 255, that counts as part of a drawing


@dataclass
class Cutouts:
    """What a folder of cut-outs holds.

    Args:
        names: of each concept, in the order of the file.
        drawings: the files of each concept in each style, by style and concept.
    """

    names: dict[str, list[str]] = field(default_factory=dict)
    drawings: dict[str, dict[str, list[Path]]] = field(default_factory=dict)


def read_cutouts(folder: str | Path) -> Cutouts:
    """Read a folder of cut-outs; every drawing is opened.

    Args:
        folder: holds `cutouts.jsonl`, and the drawings that it lists in it or below it. Lines with the same concept
            and style are several drawings of it; the names of a concept's lines add up.

    Raises:
        FileNotFoundError: if there is no such folder, or no `cutouts.jsonl` in it.
        DataError: with every problem of the lines: no JSON, not the expected fields, no name or an empty one, a
            drawing that is missing, outside the folder, there twice under any name, unreadable or invisible.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder of cut-outs at {folder}.")
    if not (folder / CUTOUTS).is_file():
        raise FileNotFoundError(
            f"No {CUTOUTS} in {folder}; expected one that lists the cut-outs, a JSON object a line."
        )
    found, problems, seen = Cutouts(), [], {}
    for number, line in enumerate(tqdm(text_lines(folder / CUTOUTS), desc="Reading cut-outs", leave=False), start=1):
        if not line.strip():
            continue
        where = f"{CUTOUTS} line {number}"
        try:
            file, concept, style, names = _entry(line)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        try:
            path = file_within(folder, file)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        place = file_identity(path)
        if place in seen:
            problems.append(f"{where}: {file} is there already, in {seen[place]}")
        else:
            try:
                open_cutout(path)
            except Exception as error:  # PIL raises many kinds
                problems.append(f"{where}: {file} cannot be used: {error}")
        seen.setdefault(place, where)
        known = found.names.setdefault(concept, [])
        known += [name for name in names if name not in known]
        found.drawings.setdefault(style, {}).setdefault(concept, []).append(path)
    if not seen and not problems:
        problems.append("no cut-out")
    if problems:
        raise DataError(str(folder / CUTOUTS), problems)
    return found


def _entry(line: str) -> tuple[str, str, str, list[str]]:
    """The fields of a line, tidy."""
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(entry)} is no object; expected one with file, concept, style and names")
    missing = [name for name in ("file", "concept", "style", "names") if name not in entry]
    if missing:
        raise ValueError(f"no {', '.join(missing)}; it has {label(', '.join(entry))}")
    for name in ("file", "concept", "style"):
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise ValueError(f"{name} is {shown(entry[name])}; expected a text that is not empty")
    names = entry["names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"names is {shown(names)}; expected a list of texts, at least one and none of them empty")
    return entry["file"], tidy(entry["concept"]), tidy(entry["style"]), [tidy(name) for name in names]


def open_cutout(path: str | Path) -> Image.Image:
    """A drawing in RGBA, upright, without its paper, trimmed to what is visible.

    Raises:
        ValueError: if nothing of it is visible, or it has more than `MAX_PIXELS` pixels.
        Exception: whatever PIL raises for what is no picture, or is cut off.
    """
    with Image.open(BoundedFile(Path(path).read_bytes())) as stored:
        if stored.width * stored.height > MAX_PIXELS:
            raise ValueError(f"it has {stored.width} x {stored.height} pixels; expected at most {MAX_PIXELS}")
        picture = upright(stored).convert("RGBA")
    if picture.getchannel("A").getextrema()[0] == 255:
        picture.putalpha(_without_paper(picture))
    box = picture.getchannel("A").point(lambda value: 255 * (value >= VISIBLE)).getbbox()
    if box is None:
        raise ValueError("no pixel of it is visible; expected a drawing on transparent ground or on white paper")
    return picture.crop(box)


def _without_paper(picture: Image.Image) -> Image.Image:
    """Opacity of an opaque drawing: 0 where near-white pixels lead to the border without a gap."""
    red, green, blue, _ = picture.split()
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    white = Image.new("L", (picture.width + 2, picture.height + 2), 255)  # a rim, from which all borders are reached
    white.paste(darkest.point(lambda value: 255 * (value >= PAPER)), (1, 1))
    ImageDraw.floodfill(white, (0, 0), 128)
    return white.point(lambda value: 255 * (value != 128)).crop((1, 1, picture.width + 1, picture.height + 1))
