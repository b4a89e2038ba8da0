"""Auto classes, and what published models carry: cards, and the handler of an endpoint."""

from omit_hf.hub.card import model_card
from omit_hf.hub.endpoint import write_handler
from omit_hf.hub.environment import environment

__all__ = ["environment", "model_card", "write_handler"]
