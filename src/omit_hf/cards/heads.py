"""The text of a card on heads and losses; heads supply the rest themselves (see `MatchingHead`)."""

from omit_hf.modeling.matching_omit import MATCHING

OMIT = "[OMIT](https://arxiv.org/abs/2603.14349)"
# Fields of a recipe that a loss reads.
LOSS_FIELDS = {"triplet": ("margin", "all_negatives_epochs"), "infonce": ("logit_scale_init_value",)}


def method_of_model(recipe: dict) -> str:
    """Describe what a recipe's head scores, with the terms that are not the paper's."""
    method, share = MATCHING[recipe["matching"]].summary, recipe.get("global_weight") or 0
    if recipe.get("score") == "augmented":
        method += "; what dustbins take is scored too"
    return f"{method}; {share:.3g} of the score is the cosine of the global features" if share else method


def kind_of_model(matching: str) -> str:
    """Describe a model with a head, for the first line of its card."""
    head = MATCHING[matching]
    kind = f"A baseline of {OMIT}" if head.baseline else f"An {OMIT} model"
    return f"{kind} for {'fine-grained ' if head.aligns else ''}image-text matching"
