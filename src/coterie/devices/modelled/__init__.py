"""The modelled device: the seam on a machine that need not exist, on a clock that only waiting moves.

Knows nothing about threads, files or kernels, nor about real devices but the one that may compute behind it.
"""
