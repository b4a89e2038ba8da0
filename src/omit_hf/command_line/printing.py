"""What commands print: columns, and names of files on one line."""

from collections.abc import Sequence

JOINERS = "\u200c\u200d"  # of scripts and emoji: not printable by themselves, and harmless


def one_line(text: str) -> str:
    """A text with escapes for what would spoil its line: ends of lines, controls, marks that turn its direction."""
    return "".join(
        each if each.isprintable() or each in JOINERS else each.encode("unicode_escape").decode() for each in text
    )


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of a plain table, two blanks between its columns.

    Args:
        rows: cells, as many in each row.
        right: numbers of the columns that are aligned right, such as those of numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(text: str, number: int) -> str:
        return text.rjust(widths[number]) if number in right else text.ljust(widths[number])

    return "\n".join("  ".join(cell(text, number) for number, text in enumerate(row)).rstrip() for row in rows)
