"""The Numba backend of `transport_similarity`: the CPU backend's tiles, with the iterations of a tile compiled.

The product is torch's, as there. What follows stays in the cache of a core, where plain torch passes over a tile some
seventeen times.
"""

import os
import threading

import numba
import numpy as np
import torch
from torch import Tensor

from omit_hf.kernels.numba_kernels import gradient_tile, score_tile
from omit_hf.modeling.packed_omit import packed_limit, packed_similarity
from omit_hf.modeling.tile_transport_omit import SUM_RANGE, PackedTransport
from omit_hf.modeling.tiles_omit import Tile

# Some of Numba's threading layers take one caller at a time, and OpenMP's does not survive a fork.
LOCK = threading.Lock()
PROCESS = os.getpid()


def limit(image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, **options) -> str | None:
    """Why `similarity` cannot serve these arguments; None if it can."""
    if image_rows.device.type != "cpu":
        return f"the tensors are on {image_rows.device}, and it takes a CPU."
    if torch.float64 in (image_rows.dtype, image_mass.dtype, text_mass.dtype):
        return "an input is torch.float64, and it computes in float32."
    if os.getpid() != PROCESS:
        return "this process was forked from one that had loaded it, and threads do not survive that."
    return packed_limit(image_rows, image_mass, text_rows, text_mass, **options)


@torch.compiler.disable
def similarity(*arguments: Tensor, **options) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    In a compiled model this is a graph break. The first call of a machine compiles for some seconds.
    """
    return packed_similarity(*arguments, problem=CompiledTransport, **options)


class CompiledTransport(PackedTransport):
    """[`PackedTransport`], compiled; a tile that leaves the range of float32 is left to it."""

    def score(self, tile: Tile) -> Tensor:
        scores = torch.empty(len(tile.captions), tile.images.shape[2])
        if self.fits and not self.run(score_tile, self.inputs(tile), scores):
            return scores.mul_(self.regularization)
        return super().score(tile)

    def gradient(self, tile: Tile, incoming: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.fits:
            inputs = self.inputs(tile)
            weight = (incoming.to(self.dtype) * self.regularization).contiguous()
            captions, words, regions, images = inputs[0].shape
            gradient = self.room("gradient", tile, self.dtype)
            grad_mu, grad_nu = torch.empty(captions, regions, images), torch.empty(captions, words, images)
            if not self.run(gradient_tile, inputs, 1 / self.regularization, weight, gradient, grad_mu, grad_nu):
                return gradient, grad_mu, grad_nu
        return super().gradient(tile, incoming)

    def inputs(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """S/λ, [T, C, R, I], μ, [1 or T, R, I], and ν, [T, C, I]."""
        mu, nu = (mass.to(self.dtype) for mass in self.mass(tile))
        similarity = self.cosines(tile)
        nu = nu.expand(-1, -1, similarity.shape[3])
        return similarity, mu.contiguous(), nu.contiguous()

    def run(self, function, inputs: tuple[Tensor, ...], *others) -> int:
        """Call compiled code on a tile; how many of its sums were out of range, which makes its result worthless."""
        bounds = map(np.float32, SUM_RANGE[self.dtype])
        others = [each.numpy() if isinstance(each, Tensor) else np.float32(each) for each in others]
        arguments = (*(each.numpy() for each in inputs), self.num_iterations, self.first, *bounds, *others)
        threads = torch.get_num_threads()
        workers = min(threads, numba.config.NUMBA_NUM_THREADS)
        with LOCK:
            numba.set_num_threads(workers)
            outside = function(workers, *arguments)
        if torch.get_num_threads() != threads:  # Numba shares torch's OpenMP, and begins with all cores
            torch.set_num_threads(threads)
        return outside
