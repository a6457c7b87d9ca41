"""The computation: ops and their legality, fusion, buffer planning, cost, the frozen program, and the NumPy reference.

Knows nothing about experts, files or real devices.
"""
