"""Show what is in a source of images and captions, and all that is wrong with it.

    omit-hf inspect dataset_flickr30k.json --data_options '{"image_folder": "flickr30k-images"}'
    omit-hf inspect coco_precomp --data_options '{"test": "testall"}' --quick
    omit-hf inspect pictures --duplicates
    omit-hf inspect hub:umaru97/flickr30k_train_val_test --sheet samples.png \\
        --data_options '{"columns": {"captions": "caption", "image_id": "filename"}}'

Exits with status 1 if anything would stop training.
"""

import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from PIL import Image, ImageDraw, ImageFont
from transformers.tokenization_utils_base import LARGE_INTEGER

from omit_hf.command_line.parser import CommandParser, json_object
from omit_hf.data import (
    DataError,
    describe_split,
    find_duplicates,
    find_problems,
    load_image_text,
    unreadable_images,
)
from omit_hf.data.pictures import open_picture, stored_pictures
from omit_hf.modeling.backbones_omit import fit_tokenizer, pretrained_backbone, pretrained_tokenizer
from omit_hf.training import holding_runs
from omit_hf.writing import appears_when_complete, write_atomically

SHEET_WIDTH, PICTURE, MARGIN = 900, 160, 10  # pixels


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(prog=prog, description=__doc__)
    parser.add_argument("source", help="what a recipe has as data: 'scenes', a JSON, a folder, hub:user/name")
    parser.add_argument("--data_options", type=json_object, default={}, help="options of the loader, as JSON")
    parser.add_argument("--quick", action="store_true", help="do not open every image")
    parser.add_argument(
        "--duplicates", action="store_true", help="compare the bytes of all images, to find one under two names"
    )
    parser.add_argument("--samples", type=int, default=3, help="images of each split to show")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--sheet", type=Path, help="picture to write, with the samples of the training split")
    parser.add_argument(
        "--text_model", metavar="MODEL", help="Hub id or folder of a text encoder: count the captions that it cuts"
    )
    parser.add_argument("--unreadable", type=Path, help="file to write, with the ids of the images that cannot be read")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = build_parser(prog).parse_args(given)
    with holding_runs(arguments.sheet, arguments.unreadable, purpose="inspection"):
        try:
            inspect(arguments)
        except DataError as error:  # all of it, where a message shows the first
            sys.exit("\n".join([f"error: {error.what} has {counted(error.problems)}:", *error.problems]))


def inspect(arguments) -> None:
    """Look at all of it, write what was asked for, and print."""
    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--sheet is {arguments.sheet}; expected the name of a picture, such as sheet.png.")
    data = load_image_text(arguments.source, **arguments.data_options)
    if isinstance(data, IterableDatasetDict):
        for split, rows in data.items():
            show(split, list(rows.remove_columns("image").take(arguments.samples)))
        return
    samples = {split: choose(rows, arguments.samples, arguments.seed) for split, rows in data.items()}
    problems, unreadable = find_problems(data, list(data)), {}
    if not arguments.quick:
        for split, rows in data.items():
            ids = rows["image_id"]
            found = unreadable_images(rows)
            unreadable |= {
                ids[number]: f"{split} image {number} ({ids[number]}): {why}" for number, why in found.items()
            }
        problems += unreadable.values()
        if arguments.unreadable is not None:
            write_atomically(arguments.unreadable, "".join(f"{each}\n" for each in unreadable))
    if arguments.duplicates:
        problems += find_duplicates(data)
    if arguments.sheet is not None and not problems:
        picture = sheet(samples["train" if "train" in samples else next(iter(samples))])
        with appears_when_complete(arguments.sheet) as partial:
            picture.save(partial, Image.registered_extensions()[arguments.sheet.suffix.lower()])

    print(table(data))
    for split, rows in samples.items():
        show(split, rows.remove_columns("image") if "image" in rows.column_names else rows)
    if arguments.text_model is not None:
        print(f"\n{too_long(data, arguments.text_model)}")
    if not arguments.quick:
        print(f"\nOpened all images; {len(unreadable)} cannot be used.")
    if problems:
        sys.exit("\n".join([f"error: {counted(problems)}:", *problems]))
    print("No problem found.")
    if arguments.sheet is not None:
        print(f"samples → {arguments.sheet}")


def too_long(data: DatasetDict, text_model: str) -> str:
    """How many captions a text model does not read to their end."""
    tokenizer = pretrained_tokenizer(text_model)
    fit_tokenizer(pretrained_backbone(text_model, "text_config", torch.float32), tokenizer)
    limit = tokenizer.model_max_length
    if limit > LARGE_INTEGER:  # as transformers says that there is none
        return f"{text_model} reads captions of any length."
    captions = [caption for rows in data.values() for captions in rows["captions"] for caption in captions]
    lengths = [len(ids) for ids in tokenizer(captions, truncation=False)["input_ids"]]
    cut = sum(length > limit for length in lengths)
    return (
        f"{cut} of {len(captions)} captions have more than the {limit} tokens that {text_model} reads, and are cut; "
        f"the longest has {max(lengths, default=0)}."
    )


def table(data: DatasetDict) -> str:
    """A row a split."""
    titles = ["split", "images", "captions", "captions an image", "words a caption", "vocabulary"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for split, rows in data.items():
        found = describe_split(rows)
        cells = [split, found.images, found.captions, found.captions_per_image, found.words, found.vocabulary]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "(least / mean / greatest)"])


def choose(rows: Dataset, count: int, seed: int) -> Dataset:
    numbers = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows.select(sorted(numbers))


def show(split: str, rows: Iterable[dict]) -> None:
    for row in rows:
        print(f"\n{split}: {row['image_id']}")
        if "region_features" in row:
            print(f"  regions {list(np.shape(row['region_features']))}")
        for caption in row["captions"]:
            print(f"  - {textwrap.shorten(caption, 200, placeholder=' …')}")


def sheet(rows: Dataset) -> Image.Image:
    """The pictures with their captions beside them."""
    if "image" not in rows.column_names:
        raise ValueError("--sheet draws pictures, and the data have none; leave it out.")
    out = Image.new("RGB", (SHEET_WIDTH, len(rows) * (PICTURE + MARGIN)), "white")
    pen = ImageDraw.Draw(out)
    for number, (stored, captions) in enumerate(zip(stored_pictures(rows)["image"], rows["captions"], strict=True)):
        picture, top = open_picture(stored), number * (PICTURE + MARGIN)
        picture.thumbnail((PICTURE, PICTURE))
        out.paste(picture, (0, top))
        for line, caption in enumerate(captions):
            text = textwrap.shorten(caption, 110, placeholder=" …")
            pen.text((PICTURE + MARGIN, top + 18 * line), text, fill="black", font=font_of(text))
    return out


def font_of(text: str) -> ImageFont.FreeTypeFont:
    """PIL's own font for Latin letters, and for others the one that is installed for most of them."""
    if text.isascii():
        return ImageFont.load_default(14)
    try:
        from omit_hf.visualization.fonts import font_files
    except ImportError:
        print(f"Captions such as {text!r} may be drawn as boxes: pip install 'omit-hf[plot]' finds a font for them.")
        return ImageFont.load_default(14)
    return ImageFont.truetype(font_files(text)[0], 14)


def counted(problems: list[str]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
