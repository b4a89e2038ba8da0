"""Show in the browser where a model finds the words of a sentence in a picture. Needs the extra `demo`.

    omit-hf app outputs/scenes
    MODEL=user/omit-scenes omit-hf app --port 8000

Choose or upload a picture and type: every word is a button, and pointing at it, or reaching it with Tab, lights the
cells that its mass comes from. Beside it is what went to the dustbins, a second sentence to compare with, and what
`mean`, one vector a side of the same features, says of both. The page is for this machine alone unless --host or
--share say otherwise, and sends nothing elsewhere.
"""

from collections.abc import Sequence

from omit_hf.command_line.pages import PageParser, address_of


def build_parser(prog: str | None = None) -> PageParser:
    return PageParser("model", "a folder or Hub id", "MODEL", prog=prog, description=__doc__)


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = build_parser(prog).parse_args(given)
    from omit_hf.demo.word_page import Demo, launch  # needs the extra `demo`, which the help does not

    launch(Demo(arguments.model), address_of(arguments))
