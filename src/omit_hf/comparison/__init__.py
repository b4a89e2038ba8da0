"""Runs grids of recipes that differ in a few fields, tuned alike, and collects their results."""

from omit_hf.comparison.plan import RUN_FIELDS, Comparison, Grid, Run, Search
from omit_hf.comparison.reading import comparison_of, is_comparison, read_comparison, selected
from omit_hf.comparison.running import Runner, check_folders
from omit_hf.comparison.searching import search_settings
from omit_hf.comparison.spread import Spread, paired, spread
from omit_hf.comparison.table import markdown, summary

__all__ = [
    "RUN_FIELDS",
    "Comparison",
    "Grid",
    "Run",
    "Runner",
    "Search",
    "Spread",
    "check_folders",
    "comparison_of",
    "is_comparison",
    "markdown",
    "paired",
    "read_comparison",
    "search_settings",
    "selected",
    "spread",
    "summary",
]
