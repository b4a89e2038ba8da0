"""The tiled engine's transport, compiled with Numba: backend `numba`."""
