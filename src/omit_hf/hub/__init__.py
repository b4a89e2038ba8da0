"""Auto classes, pipelines, publishing, and what published models carry: cards, and the handler of an endpoint."""

from omit_hf.hub.card import eval_results, model_card, recipe_card, with_results
from omit_hf.hub.endpoint import write_handler
from omit_hf.hub.environment import environment
from omit_hf.hub.pipeline import ImageTextMatchingPipeline

__all__ = [
    "ImageTextMatchingPipeline",
    "environment",
    "eval_results",
    "model_card",
    "recipe_card",
    "with_results",
    "write_handler",
]
