"""Auto classes, publishing, and the cards of published models."""

from omit_hf.hub.card import model_card, recipe_card
from omit_hf.hub.environment import environment

__all__ = ["environment", "model_card", "recipe_card"]
