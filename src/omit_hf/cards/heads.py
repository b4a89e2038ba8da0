"""The text of a card on heads and losses; heads supply the rest themselves (see `MatchingHead`)."""

from omit_hf.modeling.matching_omit import MATCHING

OMIT = "[OMIT](https://arxiv.org/abs/2603.14349)"
# Fields of a recipe that a loss reads.
LOSS_FIELDS = {"triplet": ("margin", "all_negatives_epochs"), "infonce": ("logit_scale_init_value",)}


def kind_of_model(matching: str) -> str:
    """Describe a model with a head, for the first line of its card."""
    head = MATCHING[matching]
    kind = f"A baseline of {OMIT}" if head.baseline else f"An {OMIT} model"
    return f"{kind} for {'fine-grained ' if head.aligns else ''}image-text matching"
