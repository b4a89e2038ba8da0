"""Figures as files that appear when they are complete."""

from pathlib import Path

from matplotlib.figure import Figure

from omit_hf.writing import appears_when_complete, check_output_files

FORMATS = ("png", "svg", "pdf")


def check_figure_file(file: str | Path) -> Path:
    """Check that a figure can be written to a file; writes nothing.

    Raises:
        ValueError: if its name does not end in a known format.
        FileNotFoundError: if its folder is not there.
        IsADirectoryError: if it is a folder.
        PermissionError: if its folder cannot be written to.
    """
    file = Path(file)
    if file.suffix.lower().removeprefix(".") not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise ValueError(f"The output is {str(file)!r}; expected a name that ends in one of {endings}.")
    check_output_files(file)
    return file


def save_figure(figure: Figure, file: str | Path, dpi: int = 150) -> None:
    """Write a figure as PNG, SVG or PDF; the file's suffix decides. Raises the errors of `check_figure_file`."""
    file = check_figure_file(file)
    with appears_when_complete(file) as partial:
        figure.savefig(partial, format=file.suffix.lower().removeprefix("."), dpi=dpi)
