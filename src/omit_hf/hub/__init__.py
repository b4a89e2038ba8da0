"""Auto classes, pipelines, publishing, and the cards of published models."""

from omit_hf.hub.card import model_card, recipe_card
from omit_hf.hub.environment import environment
from omit_hf.hub.pipeline import ImageTextMatchingPipeline

__all__ = ["ImageTextMatchingPipeline", "environment", "model_card", "recipe_card"]
