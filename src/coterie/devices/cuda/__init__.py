"""The CUDA device: experts in HBM, programs as Triton kernels; `gpu.py` is the way to one.

Knows nothing about other devices.
"""
