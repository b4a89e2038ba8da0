"""What a matching head is: it scores all pairs of images and captions and, if it aligns, says which fragments matched.

To write a head, derive one class from [`MatchingHead`] and add one line to `MATCHING` in `matching_omit.py`;
configuration, recipes, cards, comparison and export read the rest from the class. See ``docs/concepts/heads.md``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from .features_omit import OmitFeatures, check_sides
from .tiling_omit import DEFAULT_MEMORY_BUDGET, score_in_tiles


@dataclass
class Match:
    """Which fragments of B_i images and B_t captions matched; K regions and L words. Padding has zeros.

    Args:
        plan: the transport plan, [B_i, B_t, R, C], dustbins first where there are any; None for a head that does not
            transport.
        alignment: how much of the match a region and a word are, [B_i, B_t, K, L]; not negative, at most 1 in all.
        row_dustbin: mass that each region left in the caption's dustbin, [B_i, B_t, K]; None without dustbins.
        column_dustbin: mass that each word left in the image's dustbin, [B_i, B_t, L]; None without dustbins.
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
        if self.plan is None:
            return self.alignment
        regions, words = self.alignment.shape[-2:]
        return self.plan[..., self.plan.shape[-2] - regions :, self.plan.shape[-1] - words :]


class MatchingHead(nn.Module, ABC):
    """Base class of the heads. What stands in the class:

    Args:
        title: its name in a few words, for help texts and tables.
        summary: what it does, as a sentence that begins with "it", for model cards.
        formula: its score, for the documentation.
        fields: the fields of [`OmitConfig`] that it reads, `projection_dim` aside.
        aligns: whether `match` says which fragments matched; otherwise it scores one vector a side.
        transports: whether its match has a transport plan.
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
        """Which fragments of every image and caption matched.

        Raises:
            ValueError: if the head pools each side and aligns nothing.
        """
        raise ValueError(
            f"{type(self).__name__} pools each side and aligns nothing; expected a head that aligns, such as 'omit' or "
            "'maxsim'."
        )

    def tiled_similarity(
        self,
        image: OmitFeatures,
        text: OmitFeatures,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        matmul_dtype: str = "float32",
    ) -> Tensor:
        """`similarity` for any number of images and captions, in bounded memory.

        Args:
            image, text: features of B_i images and B_t captions.
            memory_budget: bytes for intermediate results; one pair at least is scored at a time.
            matmul_dtype: one of the head's `matmul_dtypes`; see `TransportOptions`.

        Raises:
            ValueError: for a matmul_dtype that the head does not know, or sides of unequal type, device or width, or of
                integers.
        """
        if matmul_dtype not in self.matmul_dtypes:
            raise ValueError(
                f"matmul_dtype is {matmul_dtype!r}, which heads that transport and late interaction take; "
                f"{type(self).__name__} does not."
            )
        check_sides(image.embeds, text.embeds)
        return score_in_tiles(
            lambda images, captions: self.similarity(image.select(images), text.select(captions)),
            image.embeds.shape[0],
            text.embeds.shape[0],
            self.elements_per_pair(image, text),
            memory_budget,
        )

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        """Numbers of 4 bytes that `similarity` needs for a pair."""
        return 10 * image.embeds.shape[1] * text.embeds.shape[1]

    def init_weights(self) -> None:
        """Initialise the parameters that are the head's own and no module's; use `transformers.initialization`."""

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        check_sides(image.embeds, text.embeds)
        return self.similarity(image, text)
