"""The two passes of the CPU backend: the score of every pair, and its gradient, with few similarities in memory.

Both go over the pairs of a block of images and some captions (see `problem`). The backward pass computes their
similarities anew; of few pairs that have a gradient it visits only those.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from omit_hf.kernels.tiled.late_interaction import TiledLateInteraction
from omit_hf.kernels.tiled.problem import Block, Pairs, TiledProblem
from omit_hf.kernels.tiled.transport import MAX_EXPONENT, TiledTransport
from omit_hf.modeling.transport_omit import CannotServe, Side, TransportOptions

SPARSE = 1 / 8  # share of pairs with a gradient up to which they are visited one by one


def score_transport(
    image: Side, text: Side, options: TransportOptions, problem: type[TiledTransport] = TiledTransport
) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    Memory beyond arguments and result: a packed copy of the rows, their gradients, and a few tiles, which `problem`
    scores.
    """
    exponent = largest_exponent(image.rows, text.rows, options.regularization)
    largest = MAX_EXPONENT[torch.float64]
    if not exponent <= largest:
        raise CannotServe(f"similarity / regularization may reach {exponent:.0f}, and it takes {largest}.")
    for mass in (image.mass, text.mass.transpose(0, 1)):
        if mass.shape[1] > 1:
            has_mass = (mass > 0).any(-1)
            if (has_mass != has_mass[:, :1]).any():
                raise CannotServe("an item has mass in some of its pairs and none in others.")
    make = functools.partial(problem, options=options, exponent=exponent)
    return _TiledScore.apply(*image, *text, make)


def score_late_interaction(image: Side, text: Side, temperature: float | None, matmul_dtype: str) -> Tensor:
    """Late interaction of every image and caption, [B_i, B_t]; 0 where a side has nothing valid.

    Args:
        image, text: rows, [B_i, K, D] and [B_t, L, D], and masks, [B_i, 1, K] and [1, B_t, L].
        temperature: None for the mean of the words' best similarities, τ for τ log Σ exp(best / τ).
        matmul_dtype: as in `TransportOptions`.
    """
    make = functools.partial(TiledLateInteraction, temperature=temperature, matmul_dtype=matmul_dtype)
    return _TiledScore.apply(*image, *text, make)


def largest_exponent(image_rows: Tensor, text_rows: Tensor, regularization: float) -> float:
    """A bound on |S/λ|."""
    bound = 1 / regularization
    for rows in (image_rows, text_rows):
        dtype = torch.promote_types(rows.dtype, torch.float32)
        norms = torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=dtype)
        bound *= norms.max().item() if norms.numel() else 0.0
    return bound


class _TiledScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image_rows, image_mass, text_rows, text_mass, make: Callable[[Side, Side], TiledProblem]):
        ctx.save_for_backward(image_rows, image_mass, text_rows, text_mass)
        ctx.make = make
        problem = make(Side(image_rows, image_mass), Side(text_rows, text_mass))
        shape = len(image_rows), len(text_rows)
        scores = torch.zeros(shape, dtype=problem.dtype, device=image_rows.device)  # 0 where a side has no mass
        for block in problem.image_blocks():
            first, of_block = 0, scores.new_empty(len(problem.captions.order), block.images.shape[2])
            for pairs in problem.pairs(block):
                last = first + len(pairs.captions)
                of_block[first:last] = problem.score_pairs(pairs)
                first = last
            scores[block.images[0].T, problem.captions.order] = of_block.T
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming):
        image_rows, image_mass, text_rows, text_mass = ctx.saved_tensors
        problem = ctx.make(Side(image_rows, image_mass), Side(text_rows, text_mass))
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
        return total.image_rows, total.image_mass, total.text_rows, total.text_mass, None


class _Gradients:
    """Gradients of the inputs, added up over tiles."""

    def __init__(self, problem: TiledProblem, needed: tuple[bool, ...]):
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
        gradient = self.problem.buffer("gradient", pairs.similarity.shape, self.problem.dtype)
        of_mass = self.problem.differentiate_pairs(pairs, incoming[pairs.images[:, 0], pairs.captions[:, 0]], gradient)
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
