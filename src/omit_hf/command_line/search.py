"""Find pictures of a library by a sentence, or by a picture. Needs the extra `library`.

    omit-hf search "a small red star left of a ring" --library photos.lance
    omit-hf search "a red star" --library photos.lance --where "year >= 2020 AND path LIKE '%/trips/%'"
    omit-hf search "a red star" --library photos.lance --k 1 --explain words.png
    omit-hf search "a red star" --library photos.lance --json | jq -r '.hits[].path'
    omit-hf search --image star.jpg --library photos.lance

It prints rank, score and path, the best first. --explain draws, for the best one, where each word was found. --json
prints all that is known: of every hit `score`, `path`, `metadata`, and `words`, each with `text`, `matched` (the share
of its mass that comes from the picture) and `box` (x0, y0, x1, y1 in pixels, where most of that comes from); and
`proven`, true if no other picture can score higher. The exit status is 0 also where nothing was found; 1 for errors.

A filter is a condition of SQL on the metadata: path, folder, bytes, width, height, taken and year (of cameras), and the
columns of data sets.
"""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from omit_hf.command_line.parser import CommandParser, Text
from omit_hf.command_line.printing import columns, one_line

if TYPE_CHECKING:
    from omit_hf.library import Hit, Hits, PictureLibrary


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(prog=prog, description=__doc__)
    parser.add_argument("sentence", nargs="?", type=Text, help="What is sought.")
    parser.add_argument("--library", required=True, help="Folder of the library, or its address such as s3://….")
    parser.add_argument("--model", help="Where the model that made the library is, if it was moved since.")
    parser.add_argument("--image", help="Search by this picture, a file or URL, instead of a sentence.")
    parser.add_argument("--k", type=int, default=10, help="How many to find.")
    parser.add_argument("--where", type=Text, help='Condition that pictures must meet, such as "year >= 2020".')
    parser.add_argument("--exact", action="store_true", help="Score everything, also in a library with an index.")
    parser.add_argument(
        "--explain", help="PNG, SVG or PDF to write: the words over the best hit. Needs the extra `plot`."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    parser = build_parser(prog)
    arguments = parser.parse_args(given)
    if (arguments.sentence is None) == (arguments.image is None):
        parser.error("expected either a sentence or --image")
    if arguments.explain is not None:
        if arguments.sentence is None:
            parser.error("--explain draws the words of a sentence, and --image has none")
        from omit_hf.visualization import check_figure_file, save_figure  # needs the extra `plot`

        check_figure_file(arguments.explain)

    from omit_hf.library import PictureLibrary  # needs the extra `library`, which the help does not

    disable_progress_bar()  # of loading the model
    library = PictureLibrary(arguments.library, arguments.model)
    hits = found_by(library, arguments)
    if arguments.explain is not None and hits:
        save_figure(hits[0].draw(), arguments.explain)
    print(as_json(hits, arguments.sentence) if arguments.json else as_table(hits, arguments))


def found_by(library: "PictureLibrary", arguments) -> "Hits":
    options = {"k": arguments.k, "where": arguments.where, "exact": arguments.exact}
    if arguments.sentence is not None:
        if library.of == "captions":
            raise ValueError(f"The library {library.path!r} is one of captions, which pictures find; expected --image.")
        return library.search(arguments.sentence, **options)
    if library.model.vision_encoder.input_name == "region_features":
        raise ValueError("The model takes precomputed regions, which --image cannot bring; expected a sentence.")
    if not arguments.image.startswith(("http://", "https://")) and not Path(arguments.image).is_file():
        raise FileNotFoundError(f"There is no file {arguments.image!r}; expected a picture to search by.")
    return library.search_image(arguments.image, **options)


def as_table(hits: "Hits", arguments) -> str:
    if not hits:
        of = "" if arguments.where is None else f" among what meets {one_line(arguments.where)!r}"
        return f"Nothing was found{of}."
    rows = [(str(rank), f"{hit.score:.4f}", one_line(name_of(hit))) for rank, hit in enumerate(hits, start=1)]
    lines = [columns([("rank", "score", "path"), *rows], right=[0, 1])]
    if not hits.proven:
        lines.append("\nFound by the index; another picture may score as high, and --exact scores all.")
    if arguments.explain is not None:
        lines.append(f"\nThe words over the best: {one_line(arguments.explain)}")
    return "\n".join(lines)


def name_of(hit: "Hit") -> str:
    """Its path; of what has none its first caption, or its id."""
    return hit.path or (hit.captions or [hit.id])[0]


def as_json(hits: "Hits", sentence: str | None) -> str:
    def row(hit: "Hit") -> dict:
        words = None if sentence is None else [dataclasses.asdict(word) for word in hit.words]
        return {"score": hit.score, "path": hit.path, "metadata": hit.metadata, "words": words}

    return json.dumps({"proven": hits.proven, "hits": [row(hit) for hit in hits]}, indent=2, default=as_text)


def as_text(value) -> str:
    """What JSON has no form for: dates as ISO 8601, and of data sets whatever they hold."""
    return value.isoformat() if isinstance(value, datetime.date) else str(value)
