"""Search over libraries of pictures or captions: stores, candidates, the head's score, the reason."""

from omit_hf.library.checking import Check
from omit_hf.library.hits import FoundWord, Hit, Hits
from omit_hf.library.library import PictureLibrary
from omit_hf.library.ranking import Query, Ranking, rank_candidates, rank_everything
from omit_hf.library.stores import Candidates, MemoryStore, Store, late_interaction
from omit_hf.library.updating import Report

__all__ = [
    "Candidates",
    "Check",
    "FoundWord",
    "Hit",
    "Hits",
    "MemoryStore",
    "PictureLibrary",
    "Query",
    "Ranking",
    "Report",
    "Store",
    "late_interaction",
    "rank_candidates",
    "rank_everything",
]
