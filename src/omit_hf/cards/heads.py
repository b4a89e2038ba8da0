"""What a card says of each head and each loss, and the fields of a recipe that they read."""

from typing import NamedTuple

OMIT = "[OMIT](https://arxiv.org/abs/2603.14349)"


class Head(NamedTuple):
    """What a head says of itself.

    Args:
        summary: what it does, in a line.
        fields: of a recipe that it reads.
        aligns: whether it finds where in an image each word is.
        transports: whether it makes a transport plan.
    """

    summary: str
    fields: tuple[str, ...] = ()
    aligns: bool = True
    transports: bool = False


HEADS = {
    "omit": Head(
        "it moves the fragments of an image onto the words of a caption by partial optimal transport, scores "
        "what is matched, and leaves the rest to dustbins",
        fields=("regularization", "num_iterations", "dustbin", "marginals"),
        transports=True,
    ),
    "ot": Head(
        "it moves all fragments of an image onto the words of a caption by optimal transport, and scores how "
        "alike they are",
        fields=("regularization", "num_iterations", "marginals"),
        transports=True,
    ),
    "maxsim": Head(
        "it finds for each word of a caption the most similar fragment of an image, and scores the mean (late"
        " interaction)",
    ),
    "chan": Head(
        "it finds for each word of a caption the most similar fragment of an image, and scores their log-sum-exp",
    ),
    "scan_t2i": Head(
        "each word of a caption attends over the fragments of an image, and is compared to what it attends to",
    ),
    "scan_i2t": Head(
        "each fragment of an image attends over the words of a caption, and is compared to what it attends to",
    ),
    "gpo": Head(
        "it scores the cosine of two vectors, pooled from the ranked fragments of an image and the ranked "
        "words of a caption with learned weights",
        aligns=False,
    ),
    "pem": Head(
        "it makes a Gaussian of an image's fragments and one of a caption's words, and scores how near they are",
        aligns=False,
    ),
    "mean": Head(
        "it scores the cosine of the mean of an image's fragments and the mean of a caption's words",
        aligns=False,
    ),
}
LOSS_FIELDS = {"triplet": ("margin", "all_negatives_epochs"), "infonce": ("logit_scale_init_value",)}


def kind_of_model(matching: str) -> str:
    """What a model with a head is, as a card begins: OMIT itself, or one of its baselines."""
    kind = f"An {OMIT} model" if matching == "omit" else f"A baseline of {OMIT}"
    return f"{kind} for {'fine-grained ' if HEADS[matching].aligns else ''}image-text matching"
