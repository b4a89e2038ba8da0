"""The transport as fused Triton kernels for NVIDIA GPUs: backend `triton`."""
