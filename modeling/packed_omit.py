"""The CPU backend: a score of every pair, and its gradient, with the similarities of few pairs in memory.

Both passes go over the pairs of a block of images and some captions (see `tiles_omit`). The backward pass computes
their similarities anew; of few pairs that have a gradient it visits only those.
"""

import torch
from torch import Tensor

from .tile_best_regions_omit import PackedBound, PackedLateInteraction
from .tile_transport_omit import MAX_EXPONENT, PackedTransport, largest_exponent
from .tiles_omit import Block, PackedProblem, Pairs

SPARSE = 1 / 8  # share of pairs with a gradient up to which they are visited one by one


def packed_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    *,
    problem: type[PackedTransport] = PackedTransport,
    **options,
) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    Memory beyond arguments and result: a packed copy of the rows, their gradients, and a few tiles, which `problem`
    scores.
    """
    return _PackedScore.apply(image_rows, image_mass, text_rows, text_mass, problem, options)


def packed_late_interaction(
    image_rows: Tensor,
    image_mask: Tensor,
    text_rows: Tensor,
    text_mask: Tensor,
    *,
    temperature: float | None,
    product: str = "float32",
) -> Tensor:
    """Late interaction of every image and caption, [B_i, B_t]; 0 where a side has nothing valid.

    Args:
        image_rows, image_mask: [B_i, K, D] and [B_i, K].
        text_rows, text_mask: [B_t, L, D] and [B_t, L].
        temperature: None for the mean of the words' best similarities, τ for τ log Σ exp(best / τ).
        product: as in `transport_similarity`.
    """
    sides = (image_rows, image_mask[:, None], text_rows, text_mask[None])
    return _PackedScore.apply(*sides, PackedLateInteraction, {"temperature": temperature, "product": product})


@torch.no_grad()
def packed_pair_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    images: Tensor,
    captions: Tensor,
    **options,
) -> Tensor:
    """`packed_similarity` of single pairs, image images[p] with caption captions[p]; [P], without gradient."""
    problem = PackedTransport(image_rows, image_mass, text_rows, text_mass, **options)
    score = torch.zeros(len(images), dtype=problem.dtype, device=image_rows.device)
    for chosen, pairs in problem.single_pairs(images, captions):
        score[chosen] = problem.scores(pairs).squeeze(1)
    return score


@torch.no_grad()
def packed_bound(
    image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, *, dustbins: bool
) -> Tensor:
    """Σ_l ν_l max(0, max_k S_kl) over fragments, [B_i, B_t]: late interaction, which no transport exceeds."""
    return all_scores(PackedBound(image_rows, image_mass, text_rows, text_mass, dustbins=dustbins))


def packed_limit(
    image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, *, regularization: float, **_
) -> str | None:
    """Why `packed_similarity` cannot serve these arguments; None if it can."""
    exponent = largest_exponent(image_rows, text_rows, regularization)
    if not exponent <= MAX_EXPONENT[torch.float64]:
        return f"similarity / regularization may reach {exponent:.0f}, and it takes {MAX_EXPONENT[torch.float64]}."
    for mass in (image_mass, text_mass.transpose(0, 1)):
        has_mass = (mass > 0).any(-1)
        if (has_mass != has_mass[:, :1]).any():
            return "an item has mass in some of its pairs and none in others."
    return None


def all_scores(problem: PackedProblem) -> Tensor:
    """[B_i, B_t]; 0 where a side has no mass."""
    shape = len(problem.images.rows), len(problem.captions.rows)
    scores = torch.zeros(shape, dtype=problem.dtype, device=problem.images.rows.device)
    for block in problem.image_blocks():
        of_block = torch.cat([problem.scores(pairs) for pairs in problem.pairs(block)])
        scores[block.images[0].T, problem.captions.order] = of_block.T
    return scores


class _PackedScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image_rows, image_mass, text_rows, text_mass, score, options):
        ctx.save_for_backward(image_rows, image_mass, text_rows, text_mass)
        ctx.score, ctx.options = score, options
        return all_scores(score(image_rows, image_mass, text_rows, text_mass, **options))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming):
        problem = ctx.score(*ctx.saved_tensors, **ctx.options)
        total = _Gradients(problem, ctx.needs_input_grad)
        if incoming.count_nonzero() <= SPARSE * incoming.numel():
            for _, pairs in problem.single_pairs(*incoming.nonzero(as_tuple=True)):
                total.add_single_pairs(pairs, total.of_similarity(pairs, incoming))
        else:
            for block in problem.image_blocks():
                of_block = torch.zeros_like(block.rows)
                for pairs in problem.pairs(block):
                    total.add_pairs(pairs, total.of_similarity(pairs, incoming), of_block)
                total.add_block(block, of_block)
        return total.image_rows, total.image_mass, total.text_rows, total.text_mass, None, None


class _Gradients:
    """Gradients of the inputs, added up over tiles."""

    def __init__(self, problem: PackedProblem, needed: tuple[bool, ...]):
        self.problem = problem
        inputs = (problem.images.rows, problem.image_mass, problem.captions.rows, problem.text_mass)
        self.image_rows, self.image_mass, self.text_rows, self.text_mass = (
            torch.zeros(each.shape, dtype=problem.dtype, device=each.device) if need else None
            for each, need in zip(inputs, needed[:4], strict=True)
        )

    def of_similarity(self, pairs: Pairs, incoming: Tensor) -> Tensor:
        """∂ score / ∂ S times what comes in, [W, R, I]; the gradients of the masses are added at once.

        Rows without mass are no part of the problem, so their mass has no gradient.
        """
        gradient = self.problem.room("gradient", pairs.similarity.shape, self.problem.dtype)
        of_mass = self.problem.gradients(pairs, incoming[pairs.numbers], gradient)
        if self.image_mass is not None:
            captions = pairs.captions if self.image_mass.shape[1] > 1 else pairs.captions * 0
            place = (pairs.images, captions, pairs.regions)
            self.image_mass.index_put_(place, of_mass[0].masked_fill(pairs.mu == 0, 0), accumulate=True)
        if self.text_mass is not None:
            images = pairs.word_images if self.text_mass.shape[0] > 1 else pairs.word_images * 0
            place = (images, pairs.word_captions, pairs.words)
            self.text_mass.index_put_(place, of_mass[1].masked_fill(pairs.nu == 0, 0), accumulate=True)
        return gradient

    def add_pairs(self, pairs: Pairs, gradient: Tensor, of_block: Tensor) -> None:
        """Add what all pairs of their sides give the captions, and the images' block."""
        gradient = gradient.flatten(1)
        if self.image_rows is not None:
            of_block.addmm_(gradient.T, pairs.text)
        if self.text_rows is not None:
            self.text_rows[pairs.word_captions[:, 0], pairs.words[:, 0]] += gradient @ pairs.image

    def add_block(self, block: Block, of_block: Tensor) -> None:
        if self.image_rows is not None:
            place = (block.images[0], block.regions[0])
            self.image_rows[place] = of_block.view(*block.regions.shape[1:], -1)

    def add_single_pairs(self, pairs: Pairs, gradient: Tensor) -> None:
        gradient = gradient.view(len(pairs.text), -1, pairs.image.shape[1])  # [T, C, R]
        if self.image_rows is not None:
            place = (pairs.images[..., 0], pairs.regions[..., 0])
            self.image_rows.index_put_(place, torch.bmm(gradient.mT, pairs.text), accumulate=True)
        if self.text_rows is not None:
            place = (pairs.word_captions[:, 0], pairs.words[:, 0])
            self.text_rows.index_put_(place, torch.bmm(gradient, pairs.image).flatten(0, 1), accumulate=True)
