"""Model cards: what was measured, on which machine, and on data of which terms."""

from omit_hf.cards.card import model_card, recipe_card
from omit_hf.cards.environment import environment
from omit_hf.cards.metadata import check_card, eval_results, with_results
from omit_hf.cards.sections import CardPictures

__all__ = [
    "CardPictures",
    "check_card",
    "environment",
    "eval_results",
    "model_card",
    "recipe_card",
    "with_results",
]
