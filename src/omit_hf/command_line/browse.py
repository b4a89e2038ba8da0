"""Find pictures of a library in the browser, and see why. Needs the extras `demo` and `library`.

    omit-hf browse photos.lance
    LIBRARY=s3://bucket/photos.lance omit-hf browse --port 8000

A wall of pictures appears as you type. Point at one, tap it, or reach it with Tab and the arrow keys: beside it are the
words of the sentence with the share of each that the picture has, and every word lights the cells that its mass comes
from. A click, or Enter, holds the picture until it is clicked again. Pictures stay where they are: the browser gets
small ones of those that a search finds. The page is for this machine alone unless --host or --share say otherwise, and
sends nothing elsewhere.
"""

from collections.abc import Sequence

from omit_hf.command_line.pages import PageParser, address_of


def build_parser(prog: str | None = None) -> PageParser:
    parser = PageParser("library", "a folder or an address", "LIBRARY", prog=prog, description=__doc__)
    parser.add_argument("--model", help="Where the model that made the library is, if it was moved since.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = build_parser(prog).parse_args(given)
    from omit_hf.demo.library_page import Demo, launch  # needs the extras, which the help does not

    launch(Demo(arguments.library, arguments.model), address_of(arguments))
