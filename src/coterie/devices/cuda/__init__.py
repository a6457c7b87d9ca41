"""The CUDA device: experts in HBM, programs as Triton kernels. `gpu.py` opens one.

Knows nothing about other devices.
"""
