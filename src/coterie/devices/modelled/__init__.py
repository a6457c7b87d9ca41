"""The modelled device: simulates a machine that need not exist, on a clock that only waiting advances.

Knows nothing about threads, files or kernels, nor about real devices except the one that may compute its values.
"""
