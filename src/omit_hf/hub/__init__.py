"""Auto classes, pipelines, publishing, and the cards of published models."""

from omit_hf.hub.card import eval_results, model_card, recipe_card, with_results
from omit_hf.hub.environment import environment
from omit_hf.hub.pipeline import ImageTextMatchingPipeline

__all__ = [
    "ImageTextMatchingPipeline",
    "environment",
    "eval_results",
    "model_card",
    "recipe_card",
    "with_results",
]
