"""Auto classes, and the cards of published models."""

from omit_hf.hub.card import eval_results, model_card, with_results
from omit_hf.hub.environment import environment

__all__ = ["environment", "eval_results", "model_card", "with_results"]
