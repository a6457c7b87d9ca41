"""Thin wrappers of native kernels: names, pointers and sizes.

Knows nothing about graphs, experts or callers.
"""
