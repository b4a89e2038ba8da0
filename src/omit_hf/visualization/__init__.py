"""Draws alignments: word by word, as the transport plan, and methods side by side."""

try:
    import matplotlib  # noqa: F401 (of which every module here is made)
except ImportError as error:
    raise ImportError("omit_hf.visualization needs matplotlib: pip install 'omit-hf[plot]'.") from error

from omit_hf.visualization.comparison import draw_comparison
from omit_hf.visualization.files import check_figure_file, save_figure
from omit_hf.visualization.plan import draw_plan
from omit_hf.visualization.words import draw_words, explain

__all__ = ["check_figure_file", "draw_comparison", "draw_plan", "draw_words", "explain", "save_figure"]
