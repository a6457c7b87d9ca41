"""GPU kernels in Triton: one op or fused region per file, under the names of csrc/kernels/.

Importing these modules needs the extra `cuda`; in Coterie only the CUDA device imports them.
Knows nothing about graphs, experts or callers.
"""
