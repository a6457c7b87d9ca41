"""What is computed: ops, their legality, fusion, buffers, cost, the frozen program, and the NumPy reference.

Knows nothing about experts, files or real devices.
"""
