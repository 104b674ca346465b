"""Kernels in Triton for NVIDIA GPUs; optional at run time."""
