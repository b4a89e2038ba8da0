"""The tiled CPU engine in plain torch: backend `cpu`. `problem` packs pairs and multiplies, `transport` and
`late_interaction` score a tile, `passes` go forward and backward over all tiles."""

from omit_hf.kernels.tiled.passes import score_late_interaction, score_transport

__all__ = ["score_late_interaction", "score_transport"]
