"""Draw where a model finds the words of a sentence in a picture.

    omit-hf explain outputs/scenes picture.png "a small red circle left of a star" --output plan.png
    omit-hf explain outputs/scenes scenes:12 --draw plan --output plan.pdf
    omit-hf explain outputs/scenes scenes:12 --compare outputs/ot --compare_matching ot
    omit-hf explain outputs/regions f30k_precomp:0 --photo 1007129816.jpg

By default a panel a word shows where its mass comes from, darker for more: of a grid as cells, of precomputed regions
as the best three boxes. The bar and the number tell how much of it comes from the picture at all; the rest is the
dustbin's, and the word is grey where that is the greater part. `--draw plan` shows the transport plan as a matrix, with
both dustbins and the marginals. `--compare` adds a row of panels for each further model or matching method.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Image

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import WordAlignment, word_alignment
from omit_hf.command_line.parser import CommandParser, Text, json_object
from omit_hf.data import load_image_text, load_scenes
from omit_hf.data.pictures import open_picture
from omit_hf.data.schema import SPLITS, check_count
from omit_hf.training import holding_runs

DRAWINGS = ("words", "plan")


@dataclass
class Arguments:
    output: str = field(default="plan.png", metadata={"help": "PNG, SVG or PDF to write."})
    draw: str = field(
        default="words",
        metadata={"help": "words, a panel each; or plan, the matrix with dustbins.", "choices": DRAWINGS},
    )
    fragments: int = field(
        default=12, metadata={"help": "Rows of --draw plan; the other cells or regions are added up in one more."}
    )
    compare: list[str] = field(
        default_factory=list, metadata={"help": "Folders or Hub ids of other models, a row of panels each."}
    )
    compare_matching: list[str] = field(
        default_factory=list,
        metadata={"help": "Other methods without parameters, on the features of the first model, a row each."},
    )
    photo: str | None = field(
        default=None,
        metadata={"help": "Image file that the regions of SOURCE:N were found in, to draw their boxes on."},
    )
    split: str = field(default="test", metadata={"help": "Of SOURCE:N; train, validation or test."})


@dataclass
class Shown:
    """What is explained: a picture, or regions of one that may be there."""

    picture: PIL.Image.Image | None
    captions: list[str]
    regions: dict


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(Arguments, prog=prog, description=__doc__)
    parser.add_argument("model", help="Folder or Hub id of an OmitModel.")
    parser.add_argument(
        "picture",
        help="An image file; or SOURCE:N, number N (from 0) of a split of data that training takes, such as scenes:12.",
    )
    parser.add_argument("sentence", nargs="?", type=Text, help="A caption; of SOURCE:N by default its own first one.")
    parser.add_argument("--data_options", type=json_object, default={}, help="Options of SOURCE's loader, as JSON.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = build_parser(prog)
    arguments = parser.parse_args(given)
    from omit_hf import visualization  # needs the extra `plot`, which the help does not

    visualization.check_figure_file(arguments.output)
    if arguments.draw == "plan" and (arguments.compare or arguments.compare_matching):
        parser.error("--draw plan draws one plan; leave out --compare and --compare_matching")
    shown = shown_by(arguments)
    sentence = shown.captions[0] if arguments.sentence is None else arguments.sentence

    model = load(arguments.model)
    own = align(model, shown, sentence)
    if arguments.draw == "plan":
        figure = visualization.draw_plan(own, shown.picture, arguments.fragments)
    elif arguments.compare or arguments.compare_matching:
        rows = [(name_of(arguments.model) if arguments.compare else own.matching, own)]
        rows += [(each, align(model, shown, sentence, each)) for each in arguments.compare_matching]
        rows += [(name_of(each), align(load(each), shown, sentence)) for each in arguments.compare]
        names, alignments = zip(*rows, strict=True)
        figure = visualization.draw_comparison(alignments, names, shown.picture)
    else:
        figure = visualization.draw_words(own, shown.picture)
    with holding_runs(arguments.output, purpose="drawing"):
        visualization.save_figure(figure, arguments.output)
    print(f"{sentence!r} → {arguments.output}")
    unknown = [word for word, known in zip(own.words, own.known, strict=True) if not known]
    if unknown:
        print(f"not in the model's vocabulary: {', '.join(unknown)}")


def shown_by(arguments) -> Shown:
    """The picture or the regions that the command line names."""
    source = re.fullmatch(r"(.+):(\d+)", arguments.picture)
    if Path(arguments.picture).is_file() or (source is None and not arguments.picture.startswith("scenes:")):
        if arguments.photo is not None:
            raise ValueError(f"--photo goes with the regions of SOURCE:N, and {arguments.picture} is a picture.")
        if arguments.sentence is None:
            raise ValueError(
                f"{arguments.picture} is a picture of your own, which needs a sentence; give one after it."
            )
        return Shown(opened(arguments.picture), [], {})
    if source is None:
        raise ValueError(f"The picture is {arguments.picture!r}; expected scenes:N with a number N from 0.")
    name, number = source[1], int(source[2])
    row = row_of(name, number, arguments.split, arguments.data_options)
    photo = None if arguments.photo is None else opened(arguments.photo)
    if "region_features" not in row:
        if photo is not None:
            raise ValueError(f"--photo goes with regions, and {arguments.picture} has a picture of its own.")
        return Shown(row["image"], row["captions"], {})
    size = (row["width"], row["height"]) if "width" in row else None
    return Shown(
        photo, row["captions"], {"regions": np.asarray(row["region_features"]), "boxes": row.get("boxes"), "size": size}
    )


def row_of(source: str, number: int, split: str, options: dict) -> dict:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    if source == "scenes":
        # Scene n does not depend on how many there are, so that no more are drawn than are needed.
        default = inspect.signature(load_scenes).parameters[f"{split}_size"].default
        size = options.get(f"{split}_size", default)
        check_count(f"{split}_size", size)
        check_number(source, number, split, size)
        options = {**options, f"{split}_size": number + 1}
    rows = load_image_text(source, **{**options, "only": [split]})[split]
    check_number(source, number, split, len(rows))
    if "image" not in rows.column_names:
        return rows[number]
    row = rows.cast_column("image", Image(decode=False))[number]
    return {**row, "image": open_picture(row["image"])}


def check_number(source: str, number: int, split: str, images: int) -> None:
    if number >= images:
        raise ValueError(
            f"{source}:{number} is not there: {split} has {images} images; expected a number from 0 to {images - 1}."
        )


def opened(file: str) -> PIL.Image.Image:
    try:
        return open_picture({"path": file, "bytes": None})
    except FileNotFoundError:
        raise
    except Exception as error:  # PIL raises many kinds for what is no picture
        raise ValueError(f"The picture {file} cannot be read: {error}") from error


def load(name: str):
    return OmitModel.from_pretrained(name), OmitProcessor.from_pretrained(name)


def align(model, shown: Shown, sentence: str, matching: str | None = None) -> WordAlignment:
    takes_regions = model[0].vision_encoder.input_name == "region_features"
    return word_alignment(
        *model, shown.picture, sentence, **(shown.regions if takes_regions else {}), matching=matching
    )


def name_of(model: str) -> str:
    return Path(model).name or model
