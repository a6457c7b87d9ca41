"""Kernels for GPUs, written in Triton: one op or fused region per file, with the names of csrc/kernels/.

Importing this package's modules needs the extra `cuda`; nothing else of Coterie imports them but the CUDA device.
Knows nothing about graphs, experts or who calls.
"""
