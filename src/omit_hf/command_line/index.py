"""Make a library of pictures, or bring one up to date. Needs the extra `library`.

    omit-hf index ~/Pictures --library photos.lance --model outputs/scenes
    omit-hf index ~/Pictures ~/Downloads/star.jpg --library photos.lance
    omit-hf index ~/Pictures --library photos.lance --sync
    omit-hf index ~/Pictures --library s3://bucket/photos.lance --model user/omit-scenes

Folders are searched with all that is in them. What the library has already is not encoded again, also where a file was
renamed. Stopped by Ctrl-C or a crash, the same command goes on where it was. The exit status is 0 also where some files
could not be read, which are named; 1 for errors.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omit_hf.command_line.parser import CommandParser
from omit_hf.command_line.printing import columns, one_line
from omit_hf.command_line.running import INTERRUPTED

if TYPE_CHECKING:
    from omit_hf.library import PictureLibrary, Report

MOST_NAMED = 10  # files that could not be read


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(prog=prog, description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="Folders of pictures, or picture files.")
    parser.add_argument(
        "--library", required=True, help="Folder of the library, made if need be; or an address such as s3://…."
    )
    parser.add_argument("--model", help="Folder or Hub id of an OmitModel; by default the one that made the library.")
    parser.add_argument(
        "--sync", action="store_true", help="Also remove pictures from the library that the folders no longer have."
    )
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=64, help="Pictures that are encoded together."
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="Measure how many of the best pictures a search by the index finds, and let searches look at as many "
        "candidates as finding 99 %% of them takes. It searches the whole library 200 times.",
    )
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    arguments = build_parser(prog).parse_args(given)
    from omit_hf.library import PictureLibrary  # needs the extra `library`, which the help does not

    library = PictureLibrary(arguments.library, arguments.model)
    update = library.sync if arguments.sync else library.add
    try:
        report = update(arguments.folders, batch_size=arguments.batch_size, progress=sys.stderr.isatty())
    except KeyboardInterrupt:
        print(f"Stopped. The library has {len(library)} pictures; the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    print(told(report, library))
    if arguments.check:
        print(f"\n{checked(library)}")
    return 0


def told(report: "Report", library: "PictureLibrary") -> str:
    """What an update did, as a table, and the files that could not be read."""
    counts = {name: getattr(report, name) for name in ("added", "replaced", "moved", "removed", "unchanged")}
    counts["unreadable"] = len(report.unreadable)
    rows = [(name, str(count)) for name, count in counts.items()]
    lines = [columns([*rows, ("in the library", str(len(library))), ("seconds", f"{report.seconds:.1f}")], right=[1])]
    encoded = report.added + report.replaced
    if encoded:
        lines[0] += f"  ({encoded / report.seconds:.1f} pictures a second)"
    if report.unreadable:
        named = sorted(report.unreadable.items())
        lines.append("\nNot read:")
        lines += [f"  {one_line(path)}: {one_line(reason)}" for path, reason in named[:MOST_NAMED]]
    if len(report.unreadable) > MOST_NAMED:
        lines.append(f"  and {len(report.unreadable) - MOST_NAMED} more")
    return "\n".join(lines)


def checked(library: "PictureLibrary") -> str:
    """How much the two stages find, as a table; a library without an index finds all."""
    if len(library) == 0 or library.store.index is None:
        return f"Every search scores all {len(library)} pictures, and finds the best."
    found = library.check()
    return f"{found}\n\nSearches look at {found.candidates} candidates; measured with {found.queries} {found.kind}."
