"""Losses of a score matrix between anchors and candidates, and the gathering of candidates over processes.

A loss takes one direction at a time, so that a process can score its own anchors against everybody's candidates. A
candidate of the anchor's own image is never a negative. Source: ``docs/concepts/method.md#loss``.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .features_omit import FEATURES, OmitFeatures


def triplet_loss(
    scores: Tensor, target: Tensor, same_image: Tensor, margin: float, negatives: str = "hardest"
) -> Tensor:
    """Hinge triplet loss, [α − s(anchor, positive) + s(anchor, negative)]₊.

    Args:
        scores: similarity of anchors and candidates, [A, N].
        target: index of an anchor's positive among the candidates, int64 [A].
        same_image: true where candidate and anchor belong to one image, bool [A, N]; these are not negatives.
        margin: α ≥ 0.
        negatives: `hardest`, the largest violation of an anchor, or `all`, the mean over its negatives.

    Returns:
        Mean over the anchors, a scalar. An anchor without any negative counts as 0.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5], [0.7, 0.8]])
        >>> triplet_loss(scores, torch.arange(2), torch.eye(2, dtype=torch.bool), margin=0.2)
        tensor(0.0500)
    """
    violation = (margin - scores.gather(1, target[:, None]) + scores).clamp_min(0).masked_fill(same_image, 0)
    if negatives == "hardest":
        return violation.max(dim=1).values.mean()
    if negatives == "all":
        return (violation.sum(dim=1) / (~same_image).sum(dim=1).clamp_min(1)).mean()
    raise ValueError(f"negatives is {negatives!r}; expected 'hardest' or 'all'.")


def info_nce_loss(logits: Tensor, target: Tensor, same_image: Tensor) -> Tensor:
    """Cross-entropy of the positive among the candidates, others of its image left out; mean over the anchors.

    Args:
        logits: scaled similarity of anchors and candidates, [A, N].
        target, same_image: as in [`triplet_loss`].
    """
    others = same_image.scatter(1, target[:, None], False)
    return F.cross_entropy(logits.masked_fill(others, -torch.inf), target)


class _GatherWithGradient(torch.autograd.Function):
    """Concatenates equal-sized tensors of all processes; the gradient of a slice is summed over all that used it."""

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Tensors of all processes, [B, …], in rank order and with gradient, [B · processes, …].

    Sizes must agree between processes, but for the second one, which is padded with zeros (fragments beyond the mask).
    """
    tensor = tensor.contiguous()
    if tensor.ndim > 1:
        longest = torch.tensor(tensor.shape[1], device=tensor.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        tensor = F.pad(tensor, [0, 0] * (tensor.ndim - 2) + [0, int(longest) - tensor.shape[1]])
    if tensor.dtype == torch.bool:
        return gather_with_gradient(tensor.to(torch.uint8)).bool()
    return _GatherWithGradient.apply(tensor)


def gather_features(features: OmitFeatures) -> OmitFeatures:
    """The features of all processes, with gradient."""
    return OmitFeatures(**{name: gather_with_gradient(features[name]) for name in FEATURES})
