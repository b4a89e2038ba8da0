"""The Numba backend of `transport_similarity`: the CPU backend's products, with what follows them compiled.

It stays in the cache of a core, where plain torch passes over a tile some seventeen times.
"""

import os
import threading

import numba
import numpy as np
import torch
from torch import Tensor

from omit_hf.kernels.numba.compiled import write_gradients, write_scores
from omit_hf.kernels.tiled.passes import score_transport as score_tiles
from omit_hf.kernels.tiled.problem import Pairs
from omit_hf.kernels.tiled.transport import SUM_RANGE, TiledTransport
from omit_hf.modeling.transport_omit import CannotServe, Side, TransportOptions

# Some of Numba's threading layers take one caller at a time, and OpenMP's does not survive a fork.
LOCK = threading.Lock()
PROCESS = os.getpid()


@torch.compiler.disable
def score_transport(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    The first call of a machine compiles for some seconds.
    """
    if image.rows.device.type != "cpu":
        raise CannotServe(f"the tensors are on {image.rows.device}, and it takes a CPU.")
    if torch.float64 in (image.rows.dtype, image.mass.dtype, text.mass.dtype):
        raise CannotServe("an input is torch.float64, and it computes in float32.")
    if os.getpid() != PROCESS:
        raise CannotServe("this process was forked from one that had loaded it, and threads do not survive that.")
    return score_tiles(image, text, options, CompiledTransport)


class CompiledTransport(TiledTransport):
    """[`TiledTransport`], compiled; pairs that leave the range of float32 are left to it."""

    def score_pairs(self, pairs: Pairs) -> Tensor:
        scores = torch.empty(len(pairs.captions), pairs.images.shape[2])
        if self.fits and not self.run(write_scores, pairs, scores):
            return scores.mul_(self.regularization)
        return super().score_pairs(pairs)

    def differentiate_pairs(self, pairs: Pairs, incoming: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if self.fits:
            words, regions, images = pairs.similarity.shape
            weight = (incoming.to(self.dtype) * self.regularization).contiguous()
            of_mass = torch.empty(len(pairs.captions), regions, images), torch.empty(words, images)
            if not self.run(write_gradients, pairs, 1 / self.regularization, weight, gradient, *of_mass):
                return of_mass
        return super().differentiate_pairs(pairs, incoming, gradient)

    def run(self, function, pairs: Pairs, *others) -> int:
        """Call compiled code on pairs; how many of their sums were out of range, which makes its result worthless."""
        mu, nu = pairs.mu.to(self.dtype), pairs.nu.to(self.dtype).expand(-1, pairs.similarity.shape[2])
        arrays = pairs.similarity, torch.tensor(pairs.starts), mu.contiguous(), nu.contiguous()
        smallest, largest = SUM_RANGE[self.dtype]
        bounds = np.float32(smallest), np.float32(min(largest, self.least_mass / torch.finfo(self.dtype).tiny))
        others = [each.numpy() if isinstance(each, Tensor) else np.float32(each) for each in others]
        arguments = (*(each.numpy() for each in arrays), self.num_iterations, self.num_dustbins, *bounds, *others)
        threads = torch.get_num_threads()
        workers = min(threads, numba.config.NUMBA_NUM_THREADS)
        with LOCK:
            numba.set_num_threads(workers)
            outside = function(workers, *arguments)
        if torch.get_num_threads() != threads:  # Numba shares torch's OpenMP, and begins with all cores
            torch.set_num_threads(threads)
        return outside
