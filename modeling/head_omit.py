"""What a matching head is: it scores all pairs of images and captions and, if it aligns, says which fragments matched.

To write one, derive a class from [`MatchingHead`] and add a line to `MATCHING` in `matching_omit.py`; configuration,
recipes, cards, comparison and export read the rest from the class. See ``docs/concepts/heads.md``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .features_omit import OmitFeatures
from .tiling_omit import MEMORY_BUDGET, score_in_tiles
from .transport_omit import check_sides


@dataclass
class Match:
    """Which fragments of B_i images and B_t captions matched; K regions and L words. Padding has zeros.

    Args:
        plan: the transport plan, [B_i, B_t, R, C], any dustbins first; None for a head that does not transport.
        alignment: how much of the match a region and a word are, [B_i, B_t, K, L]; not negative, at most 1 in all.
        row_dustbin: mass that a region gave the caption's dustbin, [B_i, B_t, K]; None without dustbins.
        column_dustbin: mass that a word received from the image's dustbin, [B_i, B_t, L]; None without dustbins.
        row_marginals, column_marginals: mass that the plan's rows and columns were to hold, [B_i, 1 or B_t, R] and
            [1 or B_i, B_t, C]; None without a plan.
    """

    plan: Tensor | None
    alignment: Tensor
    row_dustbin: Tensor | None = None
    column_dustbin: Tensor | None = None
    row_marginals: Tensor | None = None
    column_marginals: Tensor | None = None

    @property
    def fragments(self) -> Tensor:
        """The plan between fragments, without dustbins, [B_i, B_t, K, L]; the alignment of a head without a plan."""
        first = int(self.row_dustbin is not None)
        return self.alignment if self.plan is None else self.plan[..., first:, first:]


class MatchingHead(nn.Module, ABC):
    """Base class of the heads. What stands in the class:

    Args:
        title, formula: its name in a few words and its score, for help texts, tables and documentation.
        summary: what it does, as a sentence that begins with "it", for model cards.
        fields: the fields of [`OmitConfig`] that it reads, `projection_dim` aside.
        aligns, transports: whether `match` says which fragments matched, and whether it has a transport plan.
        num_dustbins: rows and columns in front of its plan that are dustbins.
        baseline: false for the method that this package is about.
        exports: the formats that `omit_hf.export` can write it in.
        matmul_dtypes: types in which it can multiply out cosines.
    """

    title: str = ""
    summary: str = "it matches images and captions"
    formula: str = ""
    fields: tuple[str, ...] = ()
    aligns: bool = False
    transports: bool = False
    num_dustbins: int = 0
    baseline: bool = True
    exports: tuple[str, ...] = ("onnx", "torch_export")
    matmul_dtypes: tuple[str, ...] = ("float32",)

    def __init__(self, config):
        super().__init__()

    @abstractmethod
    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """The score of every image and caption, [B_i, B_t]; 0 where a side has no valid fragment."""

    def match(self, image: OmitFeatures, text: OmitFeatures) -> Match:
        """Which fragments of every image and caption matched; `ValueError` if the head pools and aligns nothing."""
        name = type(self).__name__
        raise ValueError(f"{name} pools each side and aligns nothing; expected one that aligns, as 'omit' or 'maxsim'.")

    def tiled_similarity(
        self, image: OmitFeatures, text: OmitFeatures, memory_budget: int = MEMORY_BUDGET, matmul_dtype: str = "float32"
    ) -> Tensor:
        """`similarity` for any number of images and captions, in tiles of `memory_budget` bytes, or one pair if larger.

        `ValueError` for a `matmul_dtype` not of the head's (see `TransportOptions`), or sides that do not fit.
        """
        if matmul_dtype not in self.matmul_dtypes:
            takers = "heads that transport and late interaction"
            raise ValueError(f"matmul_dtype is {matmul_dtype!r}, which {takers} take; {type(self).__name__} does not.")
        check_sides(image.embeds, text.embeds)
        return self.score_in_tiles(self.similarity, image, text, memory_budget)

    def score_in_tiles(self, score: Callable, image: OmitFeatures, text: OmitFeatures, memory_budget: int) -> Tensor:
        """`score(image, text)` of all pairs, of some images and captions at a time."""
        sizes = image.embeds.shape[0], text.embeds.shape[0], self.elements_per_pair(image, text)
        return score_in_tiles(lambda i, t: score(image.select(i), text.select(t)), *sizes, memory_budget)

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        """Numbers of 4 bytes that `similarity` needs for a pair."""
        return 10 * image.embeds.shape[1] * text.embeds.shape[1]

    def init_weights(self) -> None:
        """Initialise the parameters that are the head's own and no module's; use `transformers.initialization`."""

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        check_sides(image.embeds, text.embeds)
        return self.similarity(image, text)
